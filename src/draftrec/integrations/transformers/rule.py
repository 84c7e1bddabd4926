"""The acceptance rule of one `generate` call: texts ended where the caller's criteria hold, tokens
streamed as they are accepted."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from draftrec.core import DraftTree, IntArray, Verdict
from draftrec.engine.text.accept import AcceptanceRule
from draftrec.engine.text.batch import RunningSequence
from draftrec.integrations.transformers.call import Call


class CallersRule:
    """Another rule's verdicts, as `generate` would have cut them."""

    def __init__(self, rule: AcceptanceRule, call: Call) -> None:
        self.rule, self.call = rule, call

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        """Verdicts that end where a criterion holds. Streams their tokens."""
        verdicts = self.rule.accept(batch, trees, logits)
        if self.call.criteria:
            verdicts = [self._ended(s, v) for s, v in zip(batch, verdicts, strict=True)]
        if self.call.streamer is not None:
            for token in verdicts[0].token_ids.tolist():  # one by one, as plain decoding would
                self.call.streamer.put(torch.tensor([token]))
        return verdicts

    def _ended(self, sequence: RunningSequence, verdict: Verdict) -> Verdict:
        """The verdict up to the first token after which a criterion holds; all of it if none does.

        Criteria are asked about one text at a time, its prompt's padding included, after every
        token: what they say of a text may depend on how long it is.
        """
        text = self._text(sequence, verdict.token_ids)
        first = text.shape[1] - len(verdict.token_ids) + 1
        for count, length in enumerate(range(first, text.shape[1] + 1), start=1):
            if bool(self.call.criteria(text[:, :length], None).any()):  # type: ignore[arg-type]
                sequence.finish = "eos"  # the loop retires it once these tokens are taken over
                return verdict.first(count)
        return verdict

    def _text(self, sequence: RunningSequence, more: IntArray) -> torch.Tensor:
        """int64 `[1, length]`: padded prompt, text so far and `more`, on the caller's device."""
        prompt = self.call.input_ids[sequence.order]
        written = [*sequence.context[sequence.prompt_tokens :].tolist(), *more.tolist()]
        return torch.cat([prompt, prompt.new_tensor(written)])[None]
