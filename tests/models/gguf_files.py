"""A tiny quantised GGUF file, tokenizer inside, as llama.cpp writes them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT = 64, 2, 4, 2, 96, 128
_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
EOS = "</s>"


def _alphabet() -> list[str]:
    """How byte-level BPE writes the 256 bytes."""
    rest = [b for b in range(256) if b not in _BYTES]
    return [*map(chr, _BYTES), *(chr(256 + i) for i in range(len(rest)))]


def write(path: Path, architecture: str = "llama") -> Path:
    """A Llama of two layers in Q8_0 with the 256 bytes, a few merges, `<s>` and `</s>`."""
    merges = ["t h", "th e", "Ġ the", "i n", "a n", "Ġ a"]
    tokens = ["<s>", EOS, *_alphabet(), *(m.replace(" ", "") for m in merges)]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    control = gguf.TokenType.CONTROL
    writer.add_token_types([control, control] + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    random = np.random.default_rng(4)
    side = WIDTH // HEADS * KV_HEADS
    shapes = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (side, WIDTH), "attn_v": (side, WIDTH),
        "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    }  # fmt: skip
    named = {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}
    named |= {"token_embd": (len(tokens), WIDTH), "output": (len(tokens), WIDTH)}
    for name, shape in named.items():
        values = random.normal(0, 0.2, shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    norms = [f"blk.{i}.{n}" for i in range(LAYERS) for n in ("attn_norm", "ffn_norm")]
    for name in [*norms, "output_norm"]:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
