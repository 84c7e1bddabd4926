"""What a model is sent: prompts put into its chat template, and their token ids.

Two things here decide about equal prompts. A chat template may write the date; it is given one by
the caller, so that a job which goes on tomorrow sends what it sent today. And the text of a special
token inside a record (`<|im_end|>` in a title) is text: it must not end the turn.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import jinja2
import numpy as np

from draftrec.config import RecordsConfig
from draftrec.core import IntArray
from draftrec.errors import DraftrecError

SpecialTokens = Literal["split", "obey"]

# Around special tokens in users' texts; characters for private use, which are removed from texts.
_OPEN, _CLOSE = "\ue0f2", "\ue0f3"
_DATE = "strftime_now"
_QUOTED = re.compile(r"""(["'])((?:(?!\1).)*%(?:(?!\1).)*)\1""")
_BREAK = "\u200b"  # zero-width space
_PROBE = "\ue0f4"  # for private use, so that no template writes it by itself
#: What models put around what they think before they answer.
THINK = "<think>", "</think>"
# Of apply_chat_template's own arguments, those that are values of the template.
_VALUES = {"tools", "documents", "add_generation_prompt", "continue_final_message"}


#: One user's words, or a whole conversation: turns of `role` and `content`.
Prompt = str | Seq[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class PromptForm:
    """How a prompt becomes what the model is sent.

    `chat`: in the tokenizer's chat template, after `system` if there is one, with `values` for the
    template to read; without it a conversation is what its turns say, a blank line between.
    `special_tokens`: whether the text of a special token in a prompt acts as that token ("obey") or
    is text like any other ("split"). `now`: what a template takes for the time; None: the time of
    the call.
    """

    chat: bool = False
    system: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    special_tokens: SpecialTokens = "obey"
    now: datetime | None = None


def thought_hint(tokenizer: Any) -> str:
    """What to do about a model that writes down what it thinks before it answers."""
    if has_chat_template(tokenizer) and "enable_thinking" in _source(tokenizer):
        return (
            "--chat-template-kwargs '{\"enable_thinking\": false}' (in Python "
            "chat_template_kwargs) has it answer at once"
        )
    return (
        f"its chat template has no enable_thinking to switch that off, so take what follows "
        f"{THINK[1]} alone, and see that --max-new-tokens leaves room for an answer"
    )


def has_chat_template(tokenizer: Any) -> bool:
    """Whether prompts can be put into a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """What a job records of a chat template: sha256 of its text, and whether it writes the date."""

    fingerprint: str
    dated: bool


def chat_template(tokenizer: Any) -> ChatTemplate | None:
    """The chat template that prompts would be put into, None where there is none."""
    if not has_chat_template(tokenizer):
        return None
    source = _source(tokenizer)
    return ChatTemplate(hashlib.sha256(source.encode()).hexdigest(), _DATE in source)


def form_of(
    records: RecordsConfig, *, has_template: bool, began: datetime | None = None
) -> PromptForm:
    """The form that settings ask for, of a job that began then.

    Raises DraftrecError where the tokenizer has no chat template but it, or what only it can use,
    is asked for.
    """
    chat = has_template if records.chat is None else records.chat
    if chat and not has_template:
        raise DraftrecError("the model's tokenizer has no chat template; use --no-chat")
    for name in ("system", "chat_template_kwargs", "chat_date"):
        if getattr(records, name) and not chat:
            reason = "--no-chat leaves it out" if has_template else "the model's tokenizer has none"
            raise DraftrecError(f"--{name.replace('_', '-')} needs a chat template; {reason}")
    date = records.chat_date
    now = datetime(date.year, date.month, date.day) if date else began
    values = records.chat_template_kwargs
    return PromptForm(chat, records.system, values, records.special_tokens, now)


class PromptEncoder:
    """Renders and encodes prompts with one tokenizer in one form.

    `found`: texts of special tokens that prompts held and that were taken for text.
    `opens_thought`: the template has ended a prompt inside of what the model thinks.
    """

    def __init__(self, tokenizer: Any, form: PromptForm) -> None:
        self.tokenizer, self.form = tokenizer, form
        self.found: set[str] = set()
        self.opens_thought = False
        if form.chat:
            self._source = _source(tokenizer)
            self._check_values()

    def render(self, prompts: Seq[str]) -> list[str]:
        """What each prompt is sent as, as text; special tokens that the tokenizer adds by itself
        (a BOS, say) are left out."""
        return [self._unmarked(text) for text in self._rendered(prompts)]

    def encode(self, prompts: Seq[Prompt]) -> list[IntArray]:
        """int32 token ids per prompt, special tokens as the model expects them.

        Raises DraftrecError with the chat template's own words where it refuses.
        """
        if not prompts:
            return []
        texts = self._rendered(prompts)
        sent = [self._unmarked(text) for text in texts]
        self.opens_thought |= self.form.chat and any(t.rstrip().endswith(THINK[0]) for t in sent)
        plain = self.tokenizer(sent, add_special_tokens=not self.form.chat)
        return [
            np.asarray(ids if text == clean else self._pieces(text), np.int32)
            for text, clean, ids in zip(texts, sent, plain.input_ids, strict=True)
        ]

    def _rendered(self, prompts: Seq[Prompt]) -> list[str]:
        """The texts to encode, with marks around special tokens that are to be text."""
        if not self.form.chat or not prompts:
            return [
                self._marked(p if isinstance(p, str) else "\n\n".join(t["content"] for t in p))
                for p in prompts
            ]
        system = self.form.system
        first = [] if system is None else [{"role": "system", "content": system}]
        turns = [[*first, *self._turns(prompt)] for prompt in prompts]
        try:
            return self._applied(self._in_parts(turns) if self._wants_parts else turns)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            words = " ".join(str(error).split()) or type(error).__name__
            mend = "leave --system out, or use --no-chat" if first else "use --no-chat"
            if not isinstance(prompts[0], str):
                mend = "put the turns as it wants them"
            raise DraftrecError(
                f"the model's chat template refuses: {words.rstrip('.')}; {mend}"
            ) from error

    def _applied(self, turns: list[list[dict[str, Any]]]) -> list[str]:
        values = {"add_generation_prompt": True, "draftrec_dates": self._dates, **self.form.values}
        return self.tokenizer.apply_chat_template(
            turns, tokenize=False, chat_template=self._fixed_template, **values
        )

    def _in_parts(self, turns: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        """The same, said as models that also look at images have it."""
        return [
            [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in one]
            for one in turns
        ]

    @cached_property
    def _wants_parts(self) -> bool:
        """Does the template look for words in parts alone? It leaves out plain ones silently then.

        Raises DraftrecError if it leaves out words either way.
        """
        turns: list[list[dict[str, Any]]] = [[{"role": "user", "content": _PROBE}]]
        try:
            if _PROBE in self._applied(turns)[0]:
                return False
            if _PROBE in self._applied(self._in_parts(turns))[0]:
                return True
        except (jinja2.TemplateError, TypeError, ValueError, LookupError):
            return False  # what it refuses is said of real turns
        raise DraftrecError(
            "the model's chat template leaves out what the user says; use --no-chat"
        )

    def _turns(self, prompt: Prompt) -> list[dict[str, str]]:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return [{**turn, "content": self._marked(turn["content"])} for turn in turns]

    def _marked(self, prompt: str) -> str:
        if self.form.special_tokens == "obey":
            return prompt
        text = prompt.replace(_OPEN, "").replace(_CLOSE, "")
        self.found.update(self._special.findall(text))
        return self._special.sub(rf"{_OPEN}\g<0>{_CLOSE}", text)

    def _unmarked(self, text: str) -> str:
        if self.form.special_tokens == "obey":
            return text
        return text.replace(_OPEN, "").replace(_CLOSE, "")

    def _pieces(self, text: str) -> list[int]:
        """Ids of a marked text: what marks hold is text, the rest is as the tokenizer has it."""
        # Text and special token by turns, None in place of a token whose marks a template parted.
        parts: list[str | None] = self._marks.split(text)
        ids = [*self._before(), *self._plain(parts[0] or "")]
        for i, part in enumerate(parts[1:], 1):
            if part:
                ids += self._as_text(part) if i % 2 else self._after(part, self._plain)
        return [*ids, *self._behind()]

    def _as_text(self, token: str) -> list[int]:
        """The text of a special token as the ids of other tokens."""
        ids = self._after(token, self._spelt)
        if self.tokenizer.convert_tokens_to_ids(token) in ids:  # a vocabulary of whole words
            ids = self._after(token[:1] + _BREAK + token[1:], self._spelt)
        return ids

    def _after(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """Ids of a text that does not stand at the start: some tokenizers add a space there."""
        lead, joined, alone = [encode(t) for t in ("\n", f"\n{text}", text)]
        return joined[len(lead) :] if joined[: len(lead)] == lead else alone

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _spelt(self, text: str) -> list[int]:
        """Ids of a text in which no token acts.

        Asked to split special tokens, a tokenizer of Rust sets a switch that calls of other threads
        read as well: their special tokens would be text, or these would act. Its parts have none.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            options = {"add_special_tokens": False, "split_special_tokens": True}
            return self.tokenizer(text, **options).input_ids
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    def _before(self) -> list[int]:
        return [] if self.form.chat else self._around[0]

    def _behind(self) -> list[int]:
        return [] if self.form.chat else self._around[1]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer puts before and after a text by itself."""
        bare = self._plain("a")  # none where a vocabulary has no such token, nor one in its place
        whole = self.tokenizer("a").input_ids
        at = next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)
        return whole[:at], whole[at + len(bare) :]

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """The texts of all tokens that act: special ones, and those that the template writes."""
        source = self._source if self.form.chat else ""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        texts = {str(t.content) for t in added if t.special or str(t.content) in source}
        texts |= set(map(str, self.tokenizer.all_special_tokens))
        longest_first = sorted((t for t in texts if t.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        return re.compile(f"{_OPEN}({self._special.pattern}){_CLOSE}|[{_OPEN}{_CLOSE}]")

    @property
    def _dates(self) -> dict[str, str]:
        """Every way in which the template may want the date, written out."""
        now = self.form.now or datetime.now()
        formats = {m[2] for m in _QUOTED.finditer(self._source)} if _DATE in self._source else ()
        return {form: now.strftime(form) for form in formats}

    @property
    def _fixed_template(self) -> str:
        """The template, its clock stopped."""
        if _DATE not in self._source:
            return self._source
        return (
            "{% macro strftime_now(format) %}{{ draftrec_dates[format] if format in draftrec_dates "
            'else raise_exception("it makes up a form of the date, which cannot be fixed") }}'
            "{% endmacro %}" + self._source
        )

    def _check_values(self) -> None:
        """Raise for values that the template cannot be given, or never reads."""
        own = set(inspect.signature(self.tokenizer.apply_chat_template).parameters) - _VALUES
        for name in self.form.values:
            if name in own:
                raise DraftrecError(
                    f"--chat-template-kwargs may not set {name!r}, which is not the template's"
                )
            if name not in _VALUES and not re.search(rf"\b{re.escape(name)}\b", self._source):
                raise DraftrecError(
                    f"--chat-template-kwargs sets {name!r}, which the model's chat template never "
                    f"reads; check its spelling in tokenizer_config.json or chat_template.jinja"
                )


def _source(tokenizer: Any) -> str:
    """The text of the chat template that `apply_chat_template` would use."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise DraftrecError(
            f"the tokenizer has several chat templates and none for chats in general "
            f"({' '.join(str(error).split())[:160]}); use --no-chat"
        ) from error
