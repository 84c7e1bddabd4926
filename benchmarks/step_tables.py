"""The section of docs/tables.md about steps on CPU."""

from __future__ import annotations

from typing import Any

from markdown import header, row, spread

Result = dict[str, Any]

#: Our passes by hand, by their name in the result.
_OURS = {"by_hand": "float32", "bfloat16": "bfloat16"}
#: Other engines, by their name in the result.
_ENGINES = {
    "transformers": "transformers",
    "generate": "HF generate",
    "llama_cpp": "llama.cpp",
    "openvino": "OpenVINO GenAI",
}


def steps(result: Result) -> str:
    """Steps of every engine, and ours beside theirs where they were looked for."""
    length = result["context"]
    what = "A step on CPU" if length <= 300 else f"A step on CPU after {length} tokens"
    out = (
        f"## {what}: `benchmarks/steps.py`\n\n"
        f"Milliseconds of a step over texts of {length} tokens in float32, plain or "
        f"with {result['nodes']} draft nodes each: the unmodified model with weights laid out "
        "once, and the pass written by hand, whose weights stay in the bfloat16 that they were "
        "published in; last that pass in bfloat16, as a job runs it by itself where the processor "
        "multiplies that. Ratio: how many times as fast the passes by hand are as the unmodified "
        "model, round by round.\n"
    )
    cells = _cells(result)
    theirs = {n: title for n, title in _ENGINES.items() if any(n in w for w in cells.values())}
    out += header("model", "texts", "drafts", *theirs.values(), "unmodified", "by hand", "ratio",
                  "in bfloat16", "ratio")  # fmt: skip
    for cell, ways in cells.items():
        times = [spread(ways.get(n, {}).get("ms")) for n in (*theirs, "packed")]
        for name in _OURS:
            own = ways.get(name, {})
            times += [spread(own.get("ms")), spread(own.get("over_packed"))]
        out += row(*cell, *times)
    out += _beside(result, cells)
    for key, weights in {"read_ms": "float32", "read_half_ms": "bfloat16"}.items():
        read = [f"{m} {spread(c[key])} ms" for m, c in result["models"].items() if key in c]
        if read:
            have = f"as many bytes as the {weights} weights have"
            out += f"\nReading {have}, once: {', '.join(read)}.\n"
    return out


def _cells(result: Result) -> dict[tuple[str, str, Any], Any]:
    """What was measured, by model, texts and draft nodes."""
    cells: dict[tuple[str, str, Any], Any] = {}
    for model, found in result["models"].items():
        for name, ways in found.items():
            if name.startswith("batch_"):
                _, batch, kind = name.split("_")
                cells[model, batch, result["nodes"] if kind == "drafts" else "none"] = ways
    return cells


def _beside(result: Result, cells: dict[tuple[str, str, Any], Any]) -> str:
    known = {m: c["peers"] for m, c in result["models"].items() if "peers" in c}
    if not known:
        return ""
    out = (
        "\nThe passes by hand beside other engines: their time over the others', and how many "
        "tokens a call with drafts has to give to be ahead of plain steps. llama.cpp multiplies as "
        "the one in bfloat16 does.\n"
    )
    peers, rivals = ("llama_cpp", "openvino"), ("generate", "llama_cpp", "openvino")
    over = [f"over {_ENGINES[n]}" for n in peers]
    ahead = ["ahead of itself", *(f"of {_ENGINES[n]}" for n in rivals)]
    out += header("model", "texts", "drafts", "ours", *over, *ahead)
    for cell, ways in cells.items():
        for name in [n for n in _OURS if n in ways]:
            own = ways[name]
            even = own.get("break_even", {})
            ratios = [own.get(f"over_{n}") for n in peers]
            needed = [even.get(n) for n in (name, *rivals)]
            out += row(*cell, _OURS[name], *map(spread, [*ratios, *needed]))
    out += "\n"
    for model, engines in known.items():
        for name, peer in engines.items():
            out += f"- {model}, {_ENGINES[name]}: {_told(peer)}.\n"
    return out


def _told(peer: dict[str, Any]) -> str:
    if "skipped" in peer:
        return f"not measured ({peer['skipped']})"
    return (
        f"{peer['version']}, weights {peer['weights']}, cache {peer['cache']}, "
        f"{peer['same_tokens']} of {peer['of_tokens']} tokens as transformers writes them"
    )
