"""Options that have no effect beside the others given: said, each once, by one table per command,
when the work begins.

An option at its default is not complained about. What is refused instead, where it is noticed, is
an option whose file would not be there afterwards, or one that contradicts another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Idle:
    """`options` (fields of the command's, separated by spaces) do nothing `when` this holds; `why`
    ends the sentence "--option has no effect ..."."""

    options: str
    when: Callable[[Any], bool]
    why: str


def idle_lines(options: Any, table: Seq[Idle]) -> list[str]:
    """A line for each option that was given and does nothing; the first rule that holds is told."""
    defaults = {it.name: it.default for it in dataclasses.fields(options)}
    found: dict[str, str] = {}
    for rule in table:
        given = [n for n in rule.options.split() if getattr(options, n) != defaults[n]]
        for name in given:
            if name not in found and rule.when(options):
                found[name] = f"--{name.replace('_', '-')} has no effect {rule.why}"
    return list(found.values())
