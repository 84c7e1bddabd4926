"""How a model's scores become texts: its own generation_config, overridden by options, and the
controls that carry it out.

transformers keeps such settings beside the weights (generation_config.json) and obeys them in
`generate`. So do we: greedy decoding keeps what changes scores (penalties, forbidden and forced
tokens) and leaves what only sampling uses, as `generate(do_sample=False)` does.
"""

# transformers' values have no types, so that strict checks say nothing.
# pyright: standard
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from draftrec.config import AcceptConfig, ControlsConfig
from draftrec.core import BoolArray
from draftrec.engine.learned.rules import ScoreRules
from draftrec.engine.sampling import Warping
from draftrec.engine.text import penalties
from draftrec.engine.text.controls import Control, Processors, RowControl, Rows
from draftrec.engine.text.penalties import NoRepeatedNGrams, PhraseBias
from draftrec.errors import DraftrecError

Phrases = tuple[tuple[tuple[int, ...], float], ...]

# What no setting of ours can do, and when it asks for something.
_REFUSED: dict[str, Callable[[Any], bool]] = {
    "num_beams": lambda v: v > 1,
    "num_beam_groups": lambda v: v > 1,
    "num_return_sequences": lambda v: v > 1,
    "penalty_alpha": lambda v: v > 0,
    "guidance_scale": lambda v: v != 1,
    "constraints": bool,
    "force_words_ids": bool,
    "dola_layers": lambda _: True,
    "watermarking_config": lambda _: True,
    "token_healing": bool,
    "max_time": lambda _: True,
}
# Names in the file that only sampling uses, and the fields of AcceptConfig that override them.
_SAMPLING = {
    "top_h": None, "top_k": "sample_top_k", "top_p": "top_p", "min_p": "min_p",
    "typical_p": "typical_p", "epsilon_cutoff": None, "eta_cutoff": None,
}  # fmt: skip
# Names in the file that are off below 1, too.
_COUNTS = (
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens",
)  # fmt: skip
_OFF = {"top_k": 0, "top_p": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


def _whole(value: float) -> bool:
    return isinstance(value, int)  # a 3.0 is none to them


# What transformers' processors take; anything else they refuse when texts are written.
_WITHIN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "repetition_penalty": ("a number above 0", lambda v: v > 0),
    "encoder_repetition_penalty": ("a number above 0", lambda v: v > 0),
    **dict.fromkeys(_COUNTS, ("a whole number", _whole)),
    "top_k": ("a whole number from 0 on", lambda v: _whole(v) and v >= 0),
    "top_p": ("a number from 0 to 1", lambda v: 0 <= v <= 1),
    "min_p": ("a number from 0 to 1", lambda v: 0 <= v <= 1),
    "top_h": ("a number from 0 to 1", lambda v: 0 <= v <= 1),
    "typical_p": ("a number above 0, to 1", lambda v: 0 < v <= 1),
    "epsilon_cutoff": ("a number from 0 on, below 1", lambda v: 0 <= v < 1),
    "eta_cutoff": ("a number from 0 on, below 1", lambda v: 0 <= v < 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """Everything between the model's scores and the choice of a token, as token ids.

    Names and meaning are those of transformers' `GenerationConfig`; what is off has its default.
    `presence_penalty` and `frequency_penalty` are OpenAI's and vLLM's: they know new tokens only.
    """

    sequence_bias: Phrases = ()
    encoder_repetition_penalty: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    top_h: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None

    def score_rules(self, temperature: float) -> ScoreRules:
        """What a draft head does to its scores, as is done to the target's; `temperature` 0: texts
        are greedy."""
        penalties = self.repetition_penalty, self.presence_penalty, self.frequency_penalty
        return ScoreRules(*penalties, temperature or 1.0)

    def warping(self, temperature: float) -> Warping:
        """How tokens are drawn at that temperature."""
        return Warping(temperature=temperature, **{name: getattr(self, name) for name in _SAMPLING})


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings in force, and those of them that the model's generation_config decided."""

    settings: GenerationSettings
    taken: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """What was taken, as text: equal where texts are written alike. Empty for nothing."""
        return json.dumps(self.taken, sort_keys=True) if self.taken else ""

    def sentence(self) -> str | None:
        """What to tell the user, if anything was taken."""
        if not self.taken:
            return None
        named = ", ".join(f"{name}={_short(value)}" for name, value in self.taken.items())
        return f"from the model's generation_config: {named} (an option overrides each)"


def resolve(controls: ControlsConfig, accept: AcceptConfig, model: Any, tokenizer: Any) -> Resolved:
    """Options, then the model's own settings, then nothing.

    Raises DraftrecError for a setting of the model that cannot be kept or means nothing, for a
    token that the tokenizer does not have, and for ids beyond the vocabulary.
    """
    file = _of_model(model) if controls.generation_config == "model" else {}
    given = _given(controls, tokenizer)
    sampled = {name for name in _SAMPLING if accept.temperature > 0}
    for name, field in _SAMPLING.items():
        if field and (value := getattr(accept, field)) is not None:
            given[name] = value
    taken = {
        n: v for n, v in file.items() if n not in given and (n not in _SAMPLING or n in sampled)
    }
    for name, value in taken.items():
        _check_value(name, value)
    settings = replace(GenerationSettings(), **{n: _frozen(v) for n, v in (taken | given).items()})
    suppressed = [*given.get("suppress_tokens", ()), *given.get("begin_suppress_tokens", ())]
    _check_ids(settings, suppressed, int(model.config.get_text_config().vocab_size))
    return Resolved(settings, taken)


def _of_model(model: Any) -> dict[str, Any]:
    """What the model's generation_config asks for beyond the defaults."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return {}
    for name, asks in _REFUSED.items():
        value = getattr(config, name, None)
        if value is not None and asks(value):
            more = f" --n {value} writes that many texts." if name == "num_return_sequences" else ""
            raise DraftrecError(
                f"The model's generation_config asks for {name}={_short(value)}, which draftrec "
                "cannot do; write texts without the model's own settings (--generation-config "
                "none, and options for those you want), or take it out of generation_config.json."
                + more
            )
    found: dict[str, Any] = {}
    for name, default in asdict(GenerationSettings()).items():
        value = getattr(config, name, None)
        if value is not None and _asks(name, value, default):
            found[name] = _plain(name, value)
    return found


def _check_value(name: str, value: Any) -> None:
    """Raise for a value of the model's that means nothing, such as a penalty below 0."""
    if name not in _WITHIN:
        return
    what, allowed = _WITHIN[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and allowed(value)):
        raise DraftrecError(
            f"The model's generation_config has {name}={_short(value)}, which must be {what}; mend "
            f"it in generation_config.json, or override it with an option."
        )


def _asks(name: str, value: Any, default: Any) -> bool:
    if name in _OFF:
        return value != _OFF[name]
    if name in _COUNTS and isinstance(value, int | float):
        return value > 0
    return value != default and value not in ([], {}, ())


def _plain(name: str, value: Any) -> Any:
    """As JSON would have it, one form per meaning."""
    if name == "sequence_bias":
        pairs = value.items() if isinstance(value, Mapping) else value
        return [[list(ids), float(bias)] for ids, bias in pairs]
    if name in ("forced_eos_token_id", "stop_strings"):
        return [value] if isinstance(value, int | str) else list(value)
    if isinstance(value, list | tuple):
        return [list(v) if isinstance(v, list | tuple) else v for v in value]
    return value


def _given(controls: ControlsConfig, tokenizer: Any) -> dict[str, Any]:
    """What options ask for, by the same names."""
    same = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")
    found = {name: getattr(controls, name) for name in same}
    found["presence_penalty"] = controls.presence_penalty
    found["frequency_penalty"] = controls.frequency_penalty
    found["stop_strings"] = controls.stop
    if controls.bad_words is not None:
        found["bad_words_ids"] = _word_ids(controls.bad_words, tokenizer)
    if controls.logit_bias is not None:
        found["sequence_bias"] = [_bias(entry, tokenizer) for entry in controls.logit_bias]
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if (tokens := getattr(controls, name)) is not None:
            found[name] = [_token_id(token, tokenizer) for token in tokens]
    if controls.forced_bos_token is not None:
        found["forced_bos_token_id"] = _token_id(controls.forced_bos_token, tokenizer)
    if controls.forced_eos_token is not None:
        found["forced_eos_token_id"] = [_token_id(controls.forced_eos_token, tokenizer)]
    return {name: value for name, value in found.items() if value is not None}


def _word_ids(words: Seq[str], tokenizer: Any) -> list[list[int]]:
    """A word's tokens at the start of a text and after a space, which are other ones."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        if not word.strip():
            continue
        for text in (word, " " + word.lstrip()):
            ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
            if ids:
                found[ids] = None
    return [list(ids) for ids in found]


def _bias(entry: str, tokenizer: Any) -> list[Any]:
    token, equals, bias = entry.rpartition("=")
    try:
        value = float(bias)
    except ValueError:
        value = float("nan")
    if not equals or not token or value != value or value == float("inf"):
        raise DraftrecError(
            f"The logit bias {entry!r} is not TOKEN=BIAS with a number after the last '='; write "
            "for example --logit-bias 42=-5 or --logit-bias ' film=2.5'."
        )
    return [[_token_id(token, tokenizer)], value]


def _token_id(token: str, tokenizer: Any) -> int:
    """Of digits, the id itself; of other text, its entry in the vocabulary."""
    if token.isascii() and token.isdigit():
        return int(token)
    known = tokenizer.get_vocab().get(token)
    if known is not None:
        return int(known)
    ids = tokenizer(token, add_special_tokens=False).input_ids if token else []
    if not ids:
        raise DraftrecError(
            f"{token!r} is no token of the model's vocabulary; name one by its id or its text."
        )
    if len(ids) != 1:
        raise DraftrecError(
            f"{token!r} is not one token of the model's vocabulary but {len(ids)} "
            f"({', '.join(map(str, ids[:8]))}); name one of them by its id, or use --bad-words "
            "for texts of several tokens."
        )
    return int(ids[0])


def _check_ids(settings: GenerationSettings, suppressed: Seq[int], vocabulary: int) -> None:
    """transformers leaves tokens that a model's file suppresses and its head does not have alone;
    so do we, but not those of the user's own, `suppressed`."""
    ids = [*settings.forced_eos_token_id, settings.forced_bos_token_id or 0, *suppressed]
    for phrase in (*(p for p, _ in settings.sequence_bias), *settings.bad_words_ids):
        ids += phrase
        if not phrase:
            raise DraftrecError(
                "A bad word or biased phrase of the model's generation_config has no tokens; take "
                "it out of generation_config.json."
            )
    odd = next((i for i in ids if not 0 <= i < vocabulary), None)
    if odd is not None:
        raise DraftrecError(
            f"Token {odd} is forced, biased or forbidden, and the model's vocabulary has "
            f"{vocabulary:,} tokens, from 0 on; name one of those."
        )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    if len(text) <= 40:
        return text
    return f"[{len(value)} entries]" if isinstance(value, list | tuple) else text[:37] + "..."


def make_controls(settings: GenerationSettings, eos_ids: frozenset[int]) -> list[Control]:
    """What `settings` ask for; nothing where they ask for nothing.

    Presence and frequency penalties, which transformers does not have, follow the repetition
    penalty, as in vLLM.
    """
    found = [*_seen(settings), *_placed(settings, sorted(eos_ids))]
    return [Processors(found)] if found else []


def _seen(settings: GenerationSettings) -> list[RowControl]:
    """Controls that depend on which tokens a path has."""
    found: list[RowControl] = []
    if settings.sequence_bias:
        found.append(PhraseBias(dict(settings.sequence_bias)))
    if settings.encoder_repetition_penalty != 1.0:
        reward = penalties.Repetition(1 / settings.encoder_repetition_penalty)
        found.append(penalties.SeenTokens(reward, penalties.prompt_alone))
    if settings.repetition_penalty != 1.0:
        found.append(penalties.SeenTokens(penalties.Repetition(settings.repetition_penalty)))
    if settings.presence_penalty or settings.frequency_penalty:
        both = penalties.PresenceAndFrequency(settings.presence_penalty, settings.frequency_penalty)
        found.append(penalties.SeenTokens(both, penalties.text_alone))
    if settings.no_repeat_ngram_size:
        found.append(NoRepeatedNGrams(settings.no_repeat_ngram_size))
    if settings.encoder_no_repeat_ngram_size:
        found.append(NoRepeatedNGrams(settings.encoder_no_repeat_ngram_size, of_prompt=True))
    return found


def _placed(settings: GenerationSettings, ends: list[int]) -> list[RowControl]:
    """Bad words, and controls that depend on where a path ends."""
    found: list[RowControl] = []
    if words := [w for w in settings.bad_words_ids if w not in {(e,) for e in ends}]:
        found.append(PhraseBias(dict.fromkeys(words, -np.inf)))
    if settings.min_length and ends:
        found.append(penalties.Suppressed(ends, penalties.shorter(settings.min_length)))
    if settings.min_new_tokens and ends:
        found.append(penalties.Suppressed(ends, penalties.below(settings.min_new_tokens)))
    first = settings.forced_bos_token_id
    if first is not None:
        found.append(penalties.Forced([first], penalties.exactly(1)))
    if settings.forced_eos_token_id:
        found.append(penalties.Forced(settings.forced_eos_token_id, penalties.at_end))
    if settings.remove_invalid_values:
        found.append(penalties.FiniteScores())
    if settings.exponential_decay_length_penalty and ends:
        start, factor = settings.exponential_decay_length_penalty
        found.append(penalties.GrowingEnd(int(start), factor, ends))
    if settings.suppress_tokens:
        found.append(penalties.Suppressed(settings.suppress_tokens))
    if settings.begin_suppress_tokens:
        due = penalties.at_start if first is None else _after_forced
        found.append(penalties.Suppressed(settings.begin_suppress_tokens, due))
    return found


def _after_forced(rows: Rows) -> BoolArray:
    """The first place that is not a forced one: the second after a prompt of one token."""
    forced = np.array([s.prompt_tokens == 1 for s in rows.batch], np.int64)[rows.owner]
    return rows.new_tokens == forced
