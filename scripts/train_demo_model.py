"""Train the small language model that ships with draftrec, from nothing but the fictional world.

    python scripts/train_demo_model.py --output src/draftrec/assets/demo-lm

One CPU thread and about twenty minutes. The training world has its own seed, so every entity of
the demo's world is new to the model. `--checkpoint FILE` survives an interruption.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import transformers
from bookshop.texts import facts
from bookshop.world import knowledge_text, stream_records
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from draftrec.data.templates import load_template

TRAIN_SEED = 7
EVAL_SEED = 0
VOCABULARY = 2048
BATCH = 16
#: The demo writes KAR texts, the others are there to be tried.
MIX = {
    ("kar", "user"): 0.40,
    ("kar", "item"): 0.24,
    ("trawl", "user"): 0.06,
    ("trawl", "item"): 0.06,
    ("once", "user"): 0.06,
    ("once", "item"): 0.06,
    ("rlmrec", "user"): 0.06,
    ("rlmrec", "item"): 0.06,
}
#: Reading exercises: the same records, but the answer names plain facts of them. They teach a small
#: model to find a title in a list, which it would not learn from the few mentions in the texts.
EXERCISE = "Facts:"
#: (last step, seed, mix): first the language, then reading as well.
PHASES = (
    (1000, TRAIN_SEED, MIX),
    (2800, TRAIN_SEED + 1, {**MIX, (EXERCISE, "user"): 0.30, (EXERCISE, "item"): 0.10}),
)
Pair = tuple[str, str]
Example = tuple[list[int], list[int]]


def pairs(seed: int, mix: dict[Pair, float], items: int = 8000) -> Iterator[Pair]:
    """An endless stream of (prompt, text), every entity once."""
    rng = random.Random(f"{seed}:mix")
    streams = {side: stream_records(side, seed=seed, items=items) for side in ("user", "item")}
    templates = {(name, side): load_template(name, side) for name, side in MIX}
    while True:
        framework, side = rng.choices(list(mix), list(mix.values()))[0]
        record = next(streams[side])
        if framework == EXERCISE:
            listing = templates["kar", side].render(record).rpartition("\n")[0]
            yield f"{listing}\n{EXERCISE}", "\n".join(facts(record).values())
            continue
        prompt = templates[framework, side].render(record)
        yield prompt, knowledge_text(record, framework, seed)


def train_tokenizer(texts: int = 6000) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text survives encoding and decoding; <s> in front, nothing behind."""
    stream = pairs(TRAIN_SEED, MIX)
    corpus = [part for _ in range(texts) for part in next(stream)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_model(vocabulary: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerFast, first: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Padded ids and labels of every step from `first` on, through all phases."""
    began = 0
    for last, seed, mix in PHASES:
        stream = phase_batches(tokenizer, pairs(seed, mix))
        # Steps already taken are drawn again and dropped: resuming changes nothing.
        yield from islice(stream, max(0, first - began), last - began)
        began = last


def phase_batches(
    tokenizer: PreTrainedTokenizerFast, stream: Iterator[Pair]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """An endless stream of batches in which examples of similar length stand together."""
    rng = random.Random(f"{TRAIN_SEED}:batches")
    chunk = 32
    while True:
        examples = encode(tokenizer, [next(stream) for _ in range(BATCH * chunk)])
        examples.sort(key=lambda one: len(one[0]) + len(one[1]))
        groups = list(range(chunk))
        rng.shuffle(groups)
        for group in groups:
            yield collate(examples[group * BATCH : (group + 1) * BATCH])


def encode(tokenizer: PreTrainedTokenizerFast, drawn: list[Pair]) -> list[Example]:
    prompts = tokenizer([prompt for prompt, _ in drawn])["input_ids"]
    texts = tokenizer([text for _, text in drawn], add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    return [(prompt, [*text, end]) for prompt, text in zip(prompts, texts, strict=True)]


def collate(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) + len(text) for prompt, text in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (prompt, text) in enumerate(examples):
        end = len(prompt) + len(text)
        ids[row, :end] = torch.tensor(prompt + text)
        labels[row, len(prompt) : end] = ids[row, len(prompt) : end]
    return ids, labels


def text_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss per text token. Padding lies to the right, so causal attention needs no mask."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        wanted = labels[:, 1:] != -100
        logits = model.lm_head(hidden[wanted])
    return cross_entropy(logits.float(), labels[:, 1:][wanted])


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices (it learns most per example), AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, steps: int) -> float:
    """Warm up, hold, then fall to nothing over the second half."""
    return min(1.0, (step + 1) / 40, 2 * (1 - step / steps))


def train(
    tokenizer: PreTrainedTokenizerFast, steps: int, checkpoint: Path | None
) -> tuple[LlamaForCausalLM, float]:
    model = build_model(len(tokenizer), TRAIN_SEED)
    chosen = optimizers(model)
    full = [group["lr"] for optimizer in chosen for group in optimizer.param_groups]
    first = restore(checkpoint, model, chosen) if checkpoint else 0
    source = batches(tokenizer, first)
    smooth, began = 0.0, time.perf_counter()
    for step in range(first, steps):
        groups = [group for optimizer in chosen for group in optimizer.param_groups]
        for group, lr in zip(groups, full, strict=True):
            group["lr"] = lr * rate(step, steps)
        loss = text_loss(model, *next(source))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in chosen:
            optimizer.step()
            optimizer.zero_grad()
        smooth = loss.item() if step == first else 0.97 * smooth + 0.03 * loss.item()
        if step % 25 == 0 or step + 1 == steps:
            seconds = time.perf_counter() - began
            print(f"step {step:5d}  loss {smooth:.4f}  {seconds:6.0f} s", flush=True)
        if checkpoint and (step + 1) % 200 == 0:
            save_checkpoint(checkpoint, model, chosen, step + 1)
    return model, smooth


def save_checkpoint(
    path: Path, model: LlamaForCausalLM, chosen: list[torch.optim.Optimizer], step: int
) -> None:
    state = {"step": step, "model": model.state_dict(), "optim": [o.state_dict() for o in chosen]}
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def restore(path: Path, model: LlamaForCausalLM, chosen: list[torch.optim.Optimizer]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(chosen, state["optim"], strict=True):
        optimizer.load_state_dict(saved)
    print(f"continuing at step {state['step']}", flush=True)
    return state["step"]


@torch.inference_mode()
def evaluate(folder: Path, framework: str, side: str, count: int) -> dict[str, object]:
    """Greedy texts of the saved weights, in float32, for entities the model has never seen."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stream = pairs(EVAL_SEED, {(framework, side): 1.0}, items=1000)
    drawn = [next(stream) for _ in range(count)]
    losses = []
    texts: list[str] = []
    lengths: list[int] = []
    ended = 0
    for start in range(0, count, 25):
        part = drawn[start : start + 25]
        losses.append(text_loss(model, *collate(encode(tokenizer, part))).item())
        inputs = tokenizer([prompt for prompt, _ in part], return_tensors="pt", padding=True)
        output = model.generate(**inputs, max_new_tokens=200, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        lengths += (new != tokenizer.pad_token_id).sum(1).tolist()
        ended += int((new == tokenizer.eos_token_id).any(1).sum())
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    print(f"\n{framework} {side}:", *texts[:4], sep="\n  ", flush=True)
    return {
        "texts": count,
        "loss": round(sum(losses) / len(losses), 4),
        "eos_rate": ended / count,
        "tokens_per_text": sum(lengths) / count,
        "distinct_texts": len(set(texts)) / count,
        "distinct_openings": len({" ".join(text.split()[:6]) for text in texts}) / count,
    }


def save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.do_sample = False
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    short = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    path.write_text(short + "\n", encoding="utf-8")  # the package is to stay small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=PHASES[-1][0], help="fewer for a trial run")
    parser.add_argument("--checkpoint", type=Path, help="written every 200 steps, continued from")
    parser.add_argument("--evaluate", type=int, default=200, help="held-out prompts per side")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = train_tokenizer()
    model, loss = train(tokenizer, options.steps, options.checkpoint)
    save(options.output, model, tokenizer)
    card = {
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "seed": TRAIN_SEED,
        "steps": options.steps,
        "batch": BATCH,
        "training_loss": round(loss, 4),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "held_out": {
            f"{framework}_{side}": evaluate(options.output, framework, side, count)
            for (framework, side), share in MIX.items()
            if (count := options.evaluate if share > 0.2 else options.evaluate // 4)
        },
    }
    (options.output / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(card), flush=True)


if __name__ == "__main__":
    main()
