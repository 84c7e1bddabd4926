"""A recording of `draftrec demo` for README.md: a picture of a terminal, made of a real run.

    python benchmarks/demo_recording.py    # about a minute; writes docs/assets/demo.svg

The demo runs on a terminal of 80 columns. What it prints is drawn as it was printed, but for the
parts that `_KEPT` leaves out, each marked by a line of three dots. Lines light up one after another
where the reader's system allows movement; elsewhere, and in the end, all of them are lit, and at no
moment (printed, in a preview) is the picture empty. The
picture names its commit and its machine, and none is made of a tree with local changes. Record on a
machine that has nothing else to do: what is measured beside other work is drawn as it came out.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import os
import pty
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence as Seq
from pathlib import Path

from common import ROOT, machine
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

COLUMNS = 80
#: What is shown: the lines after one that begins with the first words (with that line, where True)
#: and before the next that begins with the second.
_KEPT = (
    (True, "The same texts, written three ways", "What this means"),
    (False, "Side by side", "Medians of the repeats"),
    (True, "The same books, recommended six ways", "What this means"),
    (False, "Side by side", "Times:"),
    (True, "Report with plots", ""),
)
#: As the plots on a dark page; dark enough for either page, as terminals mostly are.
_THEME = TerminalTheme(
    (26, 33, 43),
    (230, 235, 241),
    [(45, 55, 68), (238, 115, 151), (62, 193, 153), (244, 154, 69),
     (95, 155, 255), (185, 138, 240), (77, 201, 214), (230, 235, 241)],
    [(125, 137, 152), (238, 115, 151), (62, 193, 153), (244, 154, 69),
     (95, 155, 255), (185, 138, 240), (77, 201, 214), (255, 255, 255)],
)  # fmt: skip
_FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {{width}} {{height}}">
<title>What draftrec demo prints</title>
<desc>{about}</desc>
<style>
.{{unique_id}}-matrix {{{{ font: {{char_height}}px {fonts}; }}}}
.{{unique_id}}-title {{{{ font: bold 15px system-ui, sans-serif; }}}}
@keyframes appear {{{{ from {{{{ opacity: 0.2; }}}} }}}}
@media (prefers-reduced-motion: no-preference) {{{{
{moves}
}}}}
{{styles}}
</style>
<defs>
<clipPath id="{{unique_id}}-clip-terminal">
<rect width="{{terminal_width}}" height="{{terminal_height}}"/>
</clipPath>
{{lines}}
</defs>
{{chrome}}
<g transform="translate({{terminal_x}}, {{terminal_y}})"
clip-path="url(#{{unique_id}}-clip-terminal)">
{{backgrounds}}
<g class="{{unique_id}}-matrix" xml:space="preserve">
{{matrix}}
</g>
</g>
</svg>
"""


def main(arguments: Seq[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record `draftrec demo` as a picture.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "assets" / "demo.svg")
    parser.add_argument("--run", type=Path, help="draw this run, a JSON file, instead of a new one")
    parser.add_argument("--keep", type=Path, help="keep the run as a JSON file, to draw it again")
    chosen = parser.parse_args(arguments)
    run = json.loads(chosen.run.read_text("utf-8")) if chosen.run else None
    here = run["machine"] if run else machine()
    if here["dirty"] is not False:
        print("commit or stash first: a recording names the commit that it shows", file=sys.stderr)
        return 2
    if run is None:
        printed, seconds = run_demo()
        run = {"printed": printed, "seconds": seconds, "machine": here}
    if chosen.keep:
        chosen.keep.write_text(json.dumps(run) + "\n", encoding="utf-8")
    chosen.output.write_text(drawn(run["printed"], run["seconds"], here), encoding="utf-8")
    print(f"{chosen.output}: {chosen.output.stat().st_size:,} bytes")
    return 0


def run_demo() -> tuple[str, float]:
    """What `draftrec demo` prints on a terminal, colours included, and the seconds that it took."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    environment.pop("NO_COLOR", None)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        demo = subprocess.Popen(
            [sys.executable, "-m", "draftrec", "demo"],
            cwd=empty, env=environment, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        printed = _all_of(ours)
    if demo.wait():
        raise SystemExit(f"draftrec demo ended with {demo.returncode}:\n{printed}")
    return printed, time.perf_counter() - start


def _all_of(terminal: int) -> str:
    parts = []
    while True:
        try:
            parts.append(os.read(terminal, 65536))
        except OSError:  # on Linux, how a terminal ends whose other side is closed
            break
        if not parts[-1]:
            break
    os.close(terminal)
    return b"".join(parts).decode().replace("\r\n", "\n")


def drawn(printed: str, seconds: float, here: dict[str, object]) -> str:
    """The picture of a run. Raises ValueError if a part to be shown was not printed."""
    lines = [Text.assemble(("$ ", "green"), ("draftrec demo", "bold")), *excerpt(printed)]
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False
    )
    for line in lines:
        console.print(line, no_wrap=True, overflow="crop")
    about = f"{here['cores']} cores of {here['cpu']}; commit {here['commit']}; {here['date']}"
    frame = _FRAME.format(about=html.escape(about), fonts=_FONTS, moves=_moves(len(lines)))
    return console.export_svg(
        title=f"on {here['cores']} CPU cores, {seconds:.0f} seconds, the wait cut out",
        theme=_THEME, code_format=frame, unique_id="demo",
    )  # fmt: skip


def excerpt(printed: str) -> list[Text]:
    """The lines that are shown, dots where others are left out."""
    lines = [Text.from_ansi(line) for line in printed.split("\n")]
    plain, shown, at = [line.plain.strip() for line in lines], [], 0
    for whole, first, behind in _KEPT:
        start = _find(plain, first, at) + (not whole)
        end = _find(plain, behind, start) if behind else len(lines)
        gap = [Text("  ...")] * bool(shown) + [Text("")] * whole
        shown += [*gap, *_trimmed(lines[start:end])]
        at = end
    return shown


def _trimmed(lines: list[Text]) -> list[Text]:
    """Without the empty lines before and after."""
    full = [at for at, line in enumerate(lines) if line.plain.strip()]
    return lines[full[0] : full[-1] + 1] if full else []


def _find(plain: Seq[str], beginning: str, start: int) -> int:
    for at in range(start, len(plain)):
        if plain[at].startswith(beginning):
            return at
    raise ValueError(f"the demo did not print {beginning!r} after line {start}")


def _moves(lines: int) -> str:
    """When which line lights up: the command, a pause, the rest one by one."""
    rules = [".demo-matrix text { animation: appear 0.25s backwards; }"]
    for at in range(1, lines):
        rules.append(
            f'.demo-matrix text[clip-path="url(#demo-line-{at})"] '
            f"{{ animation-delay: {0.8 + 0.07 * at:.2f}s; }}"
        )
    return "\n".join(rules).replace("{", "{{").replace("}", "}}")


if __name__ == "__main__":
    sys.exit(main())
