"""draftrec inside vLLM: texts written before draft for the next prompts."""

# ruff: noqa: T201
from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from draftrec.integrations.vllm import engine_args


def write(prompts: list[str], **more: Any) -> tuple[list[list[int]], float]:
    """Token ids of the texts, and tokens per step of each; one engine at a time."""
    from vllm import LLM, SamplingParams

    from draftrec.demo.shop import demo_model_path

    model = str(demo_model_path())
    llm = LLM(model, dtype="float32", enforce_eager=True, disable_log_stats=False, **more)
    settings = SamplingParams(temperature=0.0, max_tokens=160)
    texts = [list(out.outputs[0].token_ids) for out in llm.generate(prompts, settings)]
    counts = {m.name: getattr(m, "value", 0) for m in llm.get_metrics()}
    drafts = counts.get("vllm:spec_decode_num_drafts", 0)
    accepted = counts.get("vllm:spec_decode_num_accepted_tokens", 0)
    return texts, 1.0 + accepted / drafts if drafts else 1.0


def save_pool(texts: list[list[int]], folder: Path) -> None:
    """Index texts of the model's own."""
    import numpy as np

    from draftrec.demo.shop import demo_model_path
    from draftrec.models.loading import load_tokenizer, tokenizer_fingerprint
    from draftrec.pool.store import Pool

    pool = Pool(tokenizer_fingerprint(load_tokenizer(demo_model_path())))
    pool.add((np.array(ids, np.int32), None) for ids in texts)
    pool.save(folder)


def main() -> None:
    """Runs offline on the small model that comes with draftrec, on CPU or GPU."""
    from draftrec.data.templates import load_template
    from draftrec.demo.shop import readers

    template = load_template("kar", "user")
    prompts = [template.render(record) for record in readers()[:40]]
    plain, _ = write(prompts)
    with TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        save_pool(plain[:32], pool)
        drafted, tokens = write(prompts[32:], **engine_args(pool, k=16))
    print(f"the same texts: {plain[32:] == drafted}; tokens per step: {tokens:.2f}")


if __name__ == "__main__":
    main()
