"""Names, meanings and labels of all metrics. Counters get `_total` when they are shown."""

from __future__ import annotations

PREFIX = "draftrec_"

Labels = tuple[str, ...]

COUNTERS: dict[str, tuple[str, Labels]] = {
    "requests": ("HTTP requests answered.", ("route", "status")),
    "errors": ("Failures, by kind.", ("kind",)),
    "passes": ("Forward passes of the target over a batch of texts.", ()),
    "pass_rows": ("Token rows that these passes computed, drafts and prompts included.", ()),
    "texts": ("Texts finished.", ()),
    "text_ends": ("Texts handed over, by why they ended.", ("reason",)),
    "new_tokens": ("Tokens written.", ()),
    "target_calls": ("Passes times the texts that took part in each; prompts included.", ()),
    "draft_calls": ("Verifications of a draft that was not empty.", ()),
    "drafted_tokens": ("Draft tokens verified.", ()),
    "accepted_tokens": ("Draft tokens kept.", ()),
    "relaxed_tokens": ("Draft tokens kept that were not the target's own choice.", ()),
    "source_accepted_tokens": ("Draft tokens kept, by where they came from.", ("source",)),
    "depth_accepted_tokens": ("Draft tokens kept, by their depth, 1 being first.", ("depth",)),
    "group_drafted_tokens": ("Draft tokens verified, by the text's group.", ("group",)),
    "group_accepted_tokens": ("Draft tokens kept, by the text's group.", ("group",)),
    "phase_seconds": ("Seconds of drafting, verifying and computing prompts.", ("phase",)),
    "beam_passes": ("Forward passes of the target over a batch of users.", ()),
    "beam_pass_rows": ("Token rows that these passes computed.", ()),
    "beam_users": ("Beam searches finished.", ()),
    "beam_target_calls": ("Passes times the users that took part in each.", ()),
    "beam_draft_calls": ("Forward passes of the draft model, per user.", ()),
    "beam_drafted_rows": ("Draft rows verified.", ()),
    "beam_accepted_steps": ("Levels that needed no pass of their own.", ()),
    "beam_plain_users": ("Beam searches in which nothing was drafted.", ()),
    "beam_results": ("Items recommended.", ()),
    "beam_invalid": ("Beams that were no item of the catalogue.", ()),
    "beam_partial_users": ("Beam searches that a deadline cut short.", ()),
}
GAUGES: dict[str, tuple[str, Labels]] = {
    "queue_requests": ("Requests that wait for an engine.", ("route",)),
    "batch_sequences": ("Texts that the last pass worked on.", ()),
    "waiting_sequences": ("Texts that wait for a place in the batch.", ()),
    "kv_tokens": ("Tokens whose keys and values are kept for running texts.", ()),
    "kv_capacity_tokens": ("Tokens that the KV slab has room for.", ()),
    "kv_capacity_bytes": ("Size of the KV slab.", ()),
    "pool_bytes": ("Size of the pool and its indexes.", ()),
    "pool_texts": ("Texts in the pool.", ()),
    "pool_hit_ratio": ("Drafts from the pool of which a token was kept, over the pool's life.", ()),
    "beam_batch_users": ("Users that the last pass worked on.", ()),
}
_LATENCIES = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_LENGTHS = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)

#: Meaning, labels, upper bounds of the buckets.
HISTOGRAMS: dict[str, tuple[str, Labels, tuple[float, ...]]] = {
    "request_seconds": ("Time to answer a request, its wait included.", ("route",), _LATENCIES),
    "queue_seconds": ("Time that a request waited for an engine.", ("route",), _LATENCIES),
    "beam_pass_seconds": ("Time of a pass over a batch of users.", (), _LATENCIES),
    "text_tokens": ("Tokens of a text that was handed over.", (), _LENGTHS),
}
