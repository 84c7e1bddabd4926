"""draftrec inside transformers' `generate`: every batch drafts from those before it."""

# ruff: noqa: T201
from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftrec.data.templates import load_template
from draftrec.demo.shop import demo_model_path, readers
from draftrec.integrations import transformers as draftrec


def main() -> None:
    """Runs offline on the small model that comes with draftrec."""
    tokenizer: Any = AutoTokenizer.from_pretrained(demo_model_path(), padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32)
    template = load_template("kar", "user")
    pool = draftrec.new_pool(tokenizer)
    records = iter(readers())
    for _ in range(3):
        prompts = [template.render(record) for record in islice(records, 8)]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        settings = {"max_new_tokens": 160, "do_sample": False}
        plain = model.generate(**inputs, **settings)
        output = model.generate(
            **inputs, **settings, return_dict_in_generate=True,
            custom_generate=draftrec.generate, pool=pool, grow_pool=True, budget=16,
        )  # fmt: skip
        calls = sum(counts.target_calls for counts in output.counts)
        accepted = sum(counts.accepted_tokens for counts in output.counts)
        same = plain.tolist() == output.sequences.tolist()
        print(f"the same texts: {same}; target calls {calls}, draft tokens accepted {accepted}")


if __name__ == "__main__":
    main()
