"""A target of a language model's size that says what a small one says.

What a pass costs follows from the shape, what drafts are worth from what the model has learnt, and
a large target takes weeks of a GPU to train. So a trained small one is set into a large Llama that
computes the same function: its channels, heads and layers keep their weights, what comes beside
them is random but reaches the output by weights of zero. Nothing is skipped for that: every matrix
has its full size and is multiplied as any other. Any engine can run the folder.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

#: Width, layers, inner width, heads of queries and of keys (of 32 channels, as the small target's
#: are; the models themselves have half as many of 64): SmolLM2-135M and SmolLM2-360M without their
#: vocabulary.
SHAPES = {"135m": (576, 30, 1536, 18, 6), "360m": (960, 32, 2560, 30, 10)}


def grow(
    small: LlamaForCausalLM, width: int, layers: int, inner: int, heads: int, kv_heads: int
) -> LlamaForCausalLM:
    """A Llama of the shape that has the small one's logits, up to rounding; `kv_heads`: at least
    as many as the small one has.

    Raises ValueError for a shape that the small one does not fit in.
    """
    old = small.config
    share = heads // kv_heads
    fits = (
        old.num_attention_heads == old.num_key_value_heads <= kv_heads
        and old.hidden_size <= width
        and old.num_hidden_layers <= layers
        and old.intermediate_size <= inner
    )
    if not fits or heads % kv_heads:
        raise ValueError(f"a shape of {width} x {layers} has no room for {old.to_dict()}")
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            **old.to_diff_dict(), "hidden_size": width, "num_hidden_layers": layers,
            "intermediate_size": inner, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": old.head_dim,
            # Norms divide by the mean square of all channels, of which the new ones are zero.
            "rms_norm_eps": old.rms_norm_eps * old.hidden_size / width,
        }
    )  # fmt: skip
    large = LlamaForCausalLM(config).to(small.dtype)
    state, room = small.state_dict(), large.state_dict()
    scale = (old.hidden_size / width) ** 0.5
    # The small heads keep their keys; of the queries that share them each is the first.
    queries = torch.arange(old.num_attention_heads)[:, None] * share * old.head_dim
    queries = (queries + torch.arange(old.head_dim)).flatten()
    for name, weight in room.items():
        part = name.rsplit(".", 2)[-2]
        if part in ("o_proj", "down_proj", "embed_tokens", "lm_head"):
            weight.zero_()
        if (kept := state.get(name)) is None:
            continue
        if kept.ndim == 1:
            weight[: len(kept)] = kept * scale
        elif part == "q_proj":
            weight[queries, : kept.shape[1]] = kept
        elif part == "o_proj":
            weight[: kept.shape[0], queries] = kept
        else:
            weight[: kept.shape[0], : kept.shape[1]] = kept
    large.load_state_dict(room)
    return large.eval()


def _beside_weights(folder: Path) -> Iterator[Path]:
    taken = ("config.json", "generation_config.json", "training")
    for path in folder.iterdir():
        if path.name not in taken and path.suffix != ".safetensors":
            yield path


def check(small: LlamaForCausalLM, large: LlamaForCausalLM) -> float:
    """The largest difference of two models' log-probabilities on random tokens."""
    ids: Tensor = torch.randint(0, small.config.vocab_size, (4, 60))
    with torch.inference_mode():
        a, b = (m(input_ids=ids).logits.float().log_softmax(-1) for m in (small, large))
    return float((a - b).abs().max())


def main() -> None:
    """Read a target, write a grown one with everything that stands beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    args = parser.parse_args()
    small = AutoModelForCausalLM.from_pretrained(args.target, dtype=torch.float32)
    large = grow(small, *SHAPES[args.shape])
    large.save_pretrained(args.output)
    for path in _beside_weights(args.target):
        shutil.copy(path, args.output / path.name)
    total = sum(p.numel() for p in large.parameters())
    gap = check(small, large)
    print(f"{args.output}: {total:,} weights, log-probabilities differ by {gap:.1e}")


if __name__ == "__main__":
    main()
