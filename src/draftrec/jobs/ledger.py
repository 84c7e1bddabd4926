"""What a job is, for all that can be resumed: its settings and its inputs, compared with what an
output was begun with, and the refusal that names the difference."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError

_LONGEST = 80


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is otherwise now, a phrase each, as in `k was 20, now 10`."""
    return [
        f"{name} was {_shown(before.get(name))}, now {_shown(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def input_changes(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> list[str]:
    """The same of fingerprints, which say nothing to people, as in `template added`; of those that
    are known now."""
    found: list[str] = []
    for name, new in now.items():
        old = before.get(name)
        if (old or None) != (new or None):
            change = "added" if not old else "left out" if not new else "changed"
            found.append(f"{name} {change}")
    return found


def refuse_changes(output: Place, what: str, found: Seq[str]) -> None:
    """Raise DraftrecError if anything is otherwise than when `what` (a run) was begun there."""
    if found:
        raise DraftrecError(
            f"{output} holds {what} that was begun otherwise ({'; '.join(found)}); choose another "
            f"--output, or start again with --overwrite"
        )


def _shown(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
