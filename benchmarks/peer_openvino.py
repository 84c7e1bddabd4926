"""OpenVINO GenAI on the steps of `steps.py` and the texts of `live.py`: the same model as its
graph, written by many texts.

pip install openvino-genai      # brings openvino and openvino-tokenizers of the same release
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from knowledge_live import Asked
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_INPUTS = ("input_ids", "attention_mask", "position_ids")
# Tokens after which a text ends by itself: more than any measurement takes.
_MOST = 1024
# What it calls precisions.
_DTYPES = {"f32": "float32", "bf16": "bfloat16"}


class OpenVino:
    """The engine for many texts at once over the graph of `model`, which is written to `folder`.
    Prompts are int64 `[texts, tokens]`. It takes no drafts from outside."""

    modules = ("openvino", "openvino_genai")
    drafts = False

    def __init__(self, model: Any, folder: Path, precision: str = "f32") -> None:
        import openvino
        import openvino_genai

        # As it saves models by itself: half the bytes to read; what is below 6e-5 is rounded.
        openvino.save_model(graph(model), folder / "openvino_model.xml", compress_to_fp16=True)
        model.config.save_pretrained(folder)
        self._ov, self._genai = openvino, openvino_genai
        # GiB; prompts are read in one pass, and not remembered.
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_batched_tokens = 2, 8192
        scheduler.dynamic_split_fuse = scheduler.enable_prefix_caching = False
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._pipe = openvino_genai.ContinuousBatchingPipeline(
            str(folder), scheduler, "CPU", options
        )
        self._writing: list[Any] = []
        self.about = {
            "version": f"openvino-genai {version('openvino-genai')}",
            "weights": "float16",
            "computes": _DTYPES[precision],
            "cache": _DTYPES[precision],
        }

    def begin(self, prompts: Any, tokens: int = _MOST) -> None:
        """Begin texts with the prompts and write a token of each; ends those before."""
        self.close()
        options = self._genai.GenerationConfig()
        options.max_new_tokens, options.ignore_eos, options.do_sample = tokens, True, False
        self._writing = [
            self._pipe.add_request(i, self._ov.Tensor(np.ascontiguousarray(prompt[None])), options)
            for i, prompt in enumerate(prompts)
        ]
        while not all(x.can_read() for x in self._writing):
            self._pipe.step()

    def step(self, following: Any) -> Callable[[], object]:
        """The next token of every text: of its own, and kept, so that texts grow by one a step."""
        return self._pipe.step

    def greedy(self, prompts: Any, tokens: int) -> list[list[int]]:
        """The likeliest tokens after each prompt."""
        self.begin(prompts, tokens)
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
        found = [list(x.read_all()[0].generated_ids) for x in self._writing]
        self._writing = []
        return found

    def write(self, prompts: Seq[Any], asked: Asked) -> list[list[int]]:
        """A text for each of the prompts, `asked.batch` at a time: one that ends makes room."""
        options = self._genai.GenerationConfig()
        options.max_new_tokens, options.stop_token_ids = asked.max_new_tokens, set(asked.ends)
        options.repetition_penalty = asked.repetition_penalty
        options.do_sample = asked.temperature > 0
        if asked.temperature:
            options.temperature, options.rng_seed = asked.temperature, asked.seed
        texts: list[list[int]] = [[] for _ in prompts]
        waiting = deque(range(len(prompts)))
        writing: dict[int, Any] = {}
        while waiting or writing:
            while waiting and len(writing) < asked.batch:
                text = waiting.popleft()
                ids = self._ov.Tensor(np.ascontiguousarray(prompts[text][None], np.int64))
                writing[text] = self._pipe.add_request(text, ids, options)
            self._pipe.step()
            for text, handle in list(writing.items()):
                if handle.can_read():
                    (read,) = handle.read().values()
                    texts[text] += read.generated_ids
                if handle.get_status() != self._genai.GenerationStatus.RUNNING:
                    del writing[text]
        return texts

    def close(self) -> None:
        """End all texts."""
        for text in self._writing:
            text.cancel()
        self._writing = []
        while self._pipe.has_non_finished_requests():
            self._pipe.step()


class _Cached(nn.Module):
    """A causal LM as a function of tokens and of the keys and values before them, all layers'."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens, mask, positions, *past = inputs
        cache = DynamicCache()
        for keys, values in zip(past[::2], past[1::2], strict=True):
            layer = DynamicLayer()
            layer.dtype, layer.device = keys.dtype, keys.device
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            cache.layers.append(layer)
        rows, columns = tokens.shape[1], mask.shape[1]
        known = torch.arange(columns) <= (torch.arange(rows) + (columns - rows))[:, None]
        seen = known[None, None] & mask[:, None, None].bool()
        logits = self.model(tokens, seen, positions, cache).logits
        return (logits, *(x for layer in cache.layers for x in (layer.keys, layer.values)))


def graph(model: Any) -> Any:
    """The model as OpenVINO's graph, in the form that its engines for texts take: keys and values
    are its state, whose texts the input `beam_idx` reorders."""
    import openvino
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    config = model.config
    heads = config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    names = [
        f"{layer}.{part}" for layer in range(config.num_hidden_layers) for part in ("key", "value")
    ]
    past = [torch.zeros(2, heads, 3, dim) for _ in names]
    places = torch.arange(3, 7).expand(2, 4).contiguous()
    example = (places, torch.ones(2, 7, dtype=torch.long), places, *past)
    with torch.no_grad():
        found = openvino.convert_model(_Cached(model), example_input=example)
    before = [f"past_key_values.{n}" for n in names]
    after = [f"present.{n}" for n in names]
    for port, name in zip(found.inputs, [*_INPUTS, *before], strict=True):
        port.get_tensor().set_names({name})
        whole = name in _INPUTS
        port.get_node().set_friendly_name(name)
        shape = [-1, -1] if whole else [-1, heads, -1, dim]
        port.get_node().set_partial_shape(openvino.PartialShape(shape))
    for port, name in zip(found.outputs, ["logits", *after], strict=True):
        port.get_tensor().set_names({name})
    order = ops.parameter([-1], openvino.Type.i32, name="beam_idx")
    order.output(0).get_tensor().add_names({"beam_idx"})
    found.add_parameters([order])
    for name in before:
        port = found.input(name)
        readers = port.get_target_inputs()
        reordered = ops.gather(port, order, ops.constant(0))
        for reader in readers:
            reader.replace_source_output(reordered.output(0))
    found.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(found, dict(zip(before, after, strict=True)))
    tokens = ops.shape_of(found.input("input_ids"), output_type="i64")
    texts = ops.gather(tokens, ops.constant([0]), ops.constant(0))
    none = ops.concat([texts, ops.constant(np.array([heads, 0, dim], np.int64))], axis=0)
    for node in found.get_ops():
        if node.get_type_name() == "ReadValue":
            zero = ops.constant(0.0, dtype=node.get_output_element_type(0))
            node.set_arguments([ops.broadcast(zero, none)])
    found.validate_nodes_and_infer_types()
    return found
