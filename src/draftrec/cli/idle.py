"""Options that have no effect beside the others given: said, each once, by one table per command.

An option at its default is not complained about. What is refused instead, where it is noticed, is
an option whose file would not be there afterwards, or one that contradicts another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

from draftrec.cli.messages import warn


@dataclasses.dataclass(frozen=True, slots=True)
class Idle:
    """`options` (fields of the command's, separated by spaces) do nothing `when` this holds; `why`
    ends the sentence "--option has no effect ..."."""

    options: str
    when: Callable[[Any], bool]
    why: str


def say_idle(options: Any, table: Seq[Idle]) -> None:
    """Warn of each option that was given and does nothing."""
    defaults = {it.name: it.default for it in dataclasses.fields(options)}
    said: set[str] = set()
    for rule in table:
        given = [n for n in rule.options.split() if getattr(options, n) != defaults[n]]
        for name in given:
            if name not in said and rule.when(options):
                said.add(name)
                warn(f"--{name.replace('_', '-')} has no effect {rule.why}")
