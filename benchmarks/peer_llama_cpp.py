"""llama.cpp on the steps of `steps.py` and the texts of `live.py`: the same weights in a GGUF file,
decoded and sampled by its own calls.

    pip install gguf llama-cpp-python

That compiles llama.cpp for this processor, with cmake and a C++ compiler: 25 minutes on two cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import note
from knowledge_live import Asked

_ERROR = 4  # of ggml's levels of messages
# Tokens that may be decoded in one call, the longest prompt among them.
_BATCH = 2048

_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class LlamaCpp:
    """llama.cpp over the weights of `model`, which are written to `folder`. Prompts are int64
    `[texts, tokens]`."""

    modules = ("llama_cpp", "gguf")
    drafts = True

    def __init__(self, model: Any, folder: Path) -> None:
        import llama_cpp

        path = folder / "model.gguf"
        dtype = write_gguf(model, path)
        self._lib = llama_cpp
        self._vocabulary = model.config.vocab_size
        self._context, self._length = None, 0
        self._log = llama_cpp.llama_log_callback(_errors)  # has to outlive what it is called by
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise RuntimeError("llama.cpp does not load the file that was written for it")
        self.about = {
            "version": f"llama-cpp-python {version('llama-cpp-python')}",
            "weights": dtype,
            "cache": "float16",
            "built_for": llama_cpp.llama_print_system_info().decode().strip(" |"),
        }

    def begin(self, prompts: Any) -> None:
        """Read the prompts, each as a sequence of its own; forgets those before."""
        texts, self._length = prompts.shape
        self._open(texts, self._length + 64)
        for slot in range(texts):
            self._decode(self._batch(prompts[slot : slot + 1], 0, first=slot))

    def _open(self, texts: int, room: int) -> None:
        """A context of that many sequences, of at most `room` tokens each."""
        self.close()
        options = self._lib.llama_context_default_params()
        options.n_seq_max, options.n_ctx = texts, texts * room
        options.n_batch = _BATCH
        options.n_threads = options.n_threads_batch = torch.get_num_threads()
        options.no_perf = True
        self._context = self._lib.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError("llama.cpp has no memory for these texts")

    def step(self, following: Any) -> Callable[[], object]:
        """Logits of `following` `[texts, rows]` after the prompts, then forgotten."""
        batch = self._batch(following, self._length)
        memory = self._lib.llama_get_memory(self._context)

        def run() -> None:
            self._decode(batch)
            for slot in range(len(following)):
                self._lib.llama_memory_seq_rm(memory, slot, self._length, -1)

        return run

    def greedy(self, prompts: Any, tokens: int) -> list[list[int]]:
        """The likeliest tokens after each prompt."""
        self.begin(prompts[:, :-1])
        last, found = prompts[:, -1:], []
        for place in range(self._length, self._length + tokens):
            self._decode(self._batch(last, place))
            last = np.array([[int(np.argmax(x))] for x in self._logits(len(prompts))])
            found.append(last)
        return np.concatenate(found, 1).tolist()

    def write(self, prompts: Seq[Any], asked: Asked) -> list[list[int]]:
        """A text for each of the prompts, `asked.batch` at a time: a text that ends makes room for
        the next prompt at once, which is read in one pass with the others' next tokens."""
        room = max(map(len, prompts)) + asked.max_new_tokens
        self._open(asked.batch, room)
        memory = self._lib.llama_get_memory(self._context)
        texts: list[list[int]] = [[] for _ in prompts]
        waiting = deque(range(len(prompts)))
        writing: dict[int, tuple[int, Any]] = {}  # by sequence: text and its sampler
        while waiting or writing:
            rows: list[tuple[int, int, Any]] = []  # sequence, first position, tokens
            for slot in range(asked.batch):
                if slot in writing:
                    text = writing[slot][0]
                    at = len(prompts[text]) + len(texts[text]) - 1
                    rows.append((slot, at, texts[text][-1:]))
                elif waiting:
                    text = waiting.popleft()
                    writing[slot] = text, self._sampler(asked, text, prompts[text])
                    rows.append((slot, 0, prompts[text]))
            for slot, last in self._pass(rows).items():
                text, sampler = writing[slot]
                # It is told of what it chose, too.
                token = self._lib.llama_sampler_sample(sampler, self._context, last)
                texts[text].append(token)
                if token in asked.ends or len(texts[text]) == asked.max_new_tokens:
                    self._lib.llama_sampler_free(writing.pop(slot)[1])
                    self._lib.llama_memory_seq_rm(memory, slot, -1, -1)
        return texts

    def _pass(self, rows: Seq[tuple[int, int, Any]]) -> dict[int, int]:
        """Decode tokens of several sequences; by sequence the row of its last token."""
        batch = self._lib.llama_batch_init(sum(len(tokens) for *_, tokens in rows), 0, 1)
        last = {}
        for slot, start, tokens in rows:
            for place, token in enumerate(tokens, start):
                i = batch.n_tokens
                batch.token[i], batch.pos[i], batch.logits[i] = int(token), place, 0
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, slot
                batch.n_tokens += 1
            last[slot] = batch.n_tokens - 1
            batch.logits[last[slot]] = 1
        self._decode(batch)
        self._lib.llama_batch_free(batch)
        return last

    def _sampler(self, asked: Asked, text: int, prompt: Any) -> Any:
        """llama.cpp's own chain; like transformers' its penalty counts the prompt's tokens."""
        lib = self._lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        everything = len(prompt) + asked.max_new_tokens
        penalty = (everything, asked.repetition_penalty, 0.0, 0.0)
        steps = [lib.llama_sampler_init_penalties(self._vocabulary, *penalty)]
        if asked.temperature:
            steps.append(lib.llama_sampler_init_temp(asked.temperature))
            steps.append(lib.llama_sampler_init_dist(asked.seed + text))
        else:
            steps.append(lib.llama_sampler_init_greedy())
        for step in steps:
            lib.llama_sampler_chain_add(chain, step)
        for token in prompt:
            lib.llama_sampler_accept(chain, int(token))
        return chain

    def close(self) -> None:
        """Forget all texts."""
        if self._context:
            self._lib.llama_free(self._context)
        self._context = None

    def _logits(self, rows: int) -> Iterator[Any]:
        for row in range(rows):
            numbers = self._lib.llama_get_logits_ith(self._context, row)
            yield np.ctypeslib.as_array(numbers, (self._vocabulary,))

    def _batch(self, tokens: Any, start: int, first: int = 0) -> Any:
        """`tokens` `[texts, rows]` at positions `start ..`, of sequences `first ..`."""
        batch = self._lib.llama_batch_init(tokens.size, 0, 1)
        batch.n_tokens = tokens.size
        for i, ((slot, place), token) in enumerate(np.ndenumerate(tokens)):
            batch.token[i], batch.pos[i], batch.logits[i] = int(token), start + place, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, first + slot
        return batch

    def _decode(self, batch: Any) -> None:
        if failed := self._lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {failed}")
        self._lib.llama_synchronize(self._context)


def _errors(level: int, text: bytes, _: Any) -> None:
    if level == _ERROR:
        note(text.decode(errors="replace").rstrip())


def write_gguf(model: Any, path: Path) -> str:
    """Write a Llama for llama.cpp, without a tokenizer; returns the dtype of its matrices: bfloat16
    where that loses nothing, else float32. Norms are float32."""
    import gguf

    config, weights = model.config, model.state_dict()
    rope = config.rope_parameters
    if config.model_type != "llama" or rope["rope_type"] != "default":
        raise ValueError("only Llamas with ordinary rotary positions can be written")
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_key_length(dim)
    out.add_value_length(dim)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(rope["rope_theta"])
    out.add_rope_dimension_count(dim)
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("no_vocab")
    narrow = all(torch.equal(w.bfloat16().float(), w.float()) for w in weights.values())
    for name, weight in _named(weights, config):
        if weight.dim() == 1 or not narrow:
            out.add_tensor(name, weight.float().numpy())
            continue
        halves = weight.bfloat16().contiguous().view(torch.uint8).numpy()
        out.add_tensor(name, halves, raw_dtype=gguf.GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return "bfloat16" if narrow else "float32"


def _named(weights: dict[str, Any], config: Any) -> Iterator[tuple[str, Any]]:
    """llama.cpp's names and layouts."""
    yield "token_embd.weight", weights["model.embed_tokens.weight"]
    yield "output_norm.weight", weights["model.norm.weight"]
    if not config.tie_word_embeddings:
        yield "output.weight", weights["lm_head.weight"]
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in _PARTS.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            weight = beside(weight, heads[ours]) if ours in heads else weight
            yield f"blk.{layer}.{ours}.weight", weight


def beside(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Weights `[heads * dim, in]` of queries or keys with those rows side by side that rotary
    positions mix: transformers mixes rows `i` and `i + dim / 2` of a head, llama.cpp `2 i` and
    `2 i + 1`."""
    halves = weight.view(heads, 2, -1, weight.shape[-1])
    return halves.transpose(1, 2).reshape(weight.shape)
