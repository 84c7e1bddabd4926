"""The figures that `draftrec compare` shows and limits: names, labels, forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["share", "number", "score"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure. `form`: a share of 1 shown in percent, a number, or a score with four decimals.
    `paired`: it compares a run with the baseline, which itself has none. `whole`: it is taken of a
    run as a whole, and has no interval."""

    name: str
    label: str
    form: Form
    meaning: str
    paired: bool = False
    whole: bool = False

    def show(self, value: float | None) -> str:
        """A value as people read it."""
        return self._written(value, "", "%")

    def show_change(self, value: float | None) -> str:
        """A difference as people read it, with its sign."""
        return self._written(value, "+", "pp")

    def _written(self, value: float | None, sign: str, share: str) -> str:
        if value is None:
            return "-"
        if self.form == "share":
            return f"{100 * value:{sign}.1f} {share}"
        return f"{value:{sign},.2f}" if self.form == "number" else f"{value:{sign}.4f}"


_ALL = (
    Metric("new_tokens", "length", "number", "tokens per text, EOS included"),
    Metric("eos_rate", "EOS rate", "share", "texts that end by themselves"),
    Metric("exact_match", "exact match", "share", "texts that are the baseline's token for token",
           paired=True),
    Metric("common_prefix", "common prefix", "share",
           "tokens until the first difference from the baseline's text", paired=True),
    Metric("relaxed_share", "relaxed tokens", "share", "tokens that are not the model's first"),
    Metric("similarity", "similarity", "score", "cosine with the baseline's text of the entity",
           paired=True),
    Metric("similarity_kept", "similarity kept", "share",
           "1 as the baseline's own text, 0 as near to any other entity's", paired=True),
    Metric("vectors_equal", "equal vectors", "share", "texts whose vector is the baseline's",
           paired=True),
    Metric("distinct_1", "distinct-1", "share", "different tokens over tokens, whole run",
           whole=True),
    Metric("distinct_2", "distinct-2", "share", "different 2-grams over 2-grams, whole run",
           whole=True),
    Metric("distinct_3", "distinct-3", "share", "different 3-grams over 3-grams, whole run",
           whole=True),
    Metric("text_distinct_1", "distinct-1 per text", "share", "the same within a text, mean"),
    Metric("text_distinct_2", "distinct-2 per text", "share", "the same within a text, mean"),
    Metric("text_distinct_3", "distinct-3 per text", "share", "the same within a text, mean"),
    Metric("self_bleu", "self-BLEU", "score", "BLEU-4 with texts of other entities of the run"),
    Metric("copied_texts", "copied texts", "share", "texts that another entity of the run has too"),
    Metric("repetition", "repetition", "share", "4-grams that a text has written before"),
    Metric("titles_named", "titles named", "number", "titles of the catalogue per text"),
    Metric("titles_grounded", "titles grounded", "share", "of those named: in the own prompt"),
    Metric("titles_leaked", "titles leaked", "number",
           "per text: in another entity's prompt only; the excess over the baseline counts"),
    Metric("titles_foreign", "titles in no prompt", "number",
           "per text: known to the model or invented, not decidable"),
    Metric("template_valid", "valid form", "share", "texts of the form that the framework asks"),
    Metric("missing_share", "entities missing", "share", "entities of the baseline without a text",
           paired=True),
    Metric("other_prompts", "other prompts", "share", "texts that answer another prompt",
           paired=True),
    Metric("auc", "AUC", "score", "click models, mean over models and adaptors"),
    Metric("logloss", "LogLoss", "score", "click models, mean over models and adaptors"),
)  # fmt: skip

#: By name, in the order in which reports show them.
METRICS = {metric.name: metric for metric in _ALL}
#: What trained models are measured by: intervals over seeds, not over entities.
CTR_METRICS = ("auc", "logloss")
