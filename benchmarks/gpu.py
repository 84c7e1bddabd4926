"""What draftrec costs and gains on a GPU: one command without arguments, about half an hour.

    PYTHONPATH=src python benchmarks/gpu.py
    PYTHONPATH=src python benchmarks/gpu.py --dry              # on CPU, tiny shapes: does it run?

Llamas of 0.5B, 1B and 7B parameters get random weights on the device. Measured are: the plain step
against the time to read the weights once, what the first sight of a shape costs, passes of up to
256 rows, replayed texts (plain, strict, relaxed) beside Hugging Face's `generate` and, where they
are installed, vLLM and SGLang, whether strict texts are plain ones bit for bit, and beams.

Every section runs under a time limit of its own in a child process, and is saved as soon as it is
done, as JSON and as a page: neither a crash nor Ctrl-C loses what was measured. What failed or was
left out is named. Nothing is read but recorded texts in ../shared, if there are any.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gpu_page
import gpu_sections
from common import RESULTS, ROOT, SHARED, machine, note, slug

from draftrec.engine.passes.frozen import FrozenRunner

_POLL = 0.2
_CHILD_FAILED = 3


@dataclass(frozen=True)
class Section:
    """One measurement; `limit` in seconds. One that is `alone` shares no process with others."""

    kind: str
    shape: str = ""
    limit: float = 240.0
    alone: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind} {self.shape}".strip()


@dataclass
class Book:
    """What has become of the sections so far, in the folder `scratch`; `page` and `file` are made
    of it anew whenever one more is settled."""

    file: Path
    scratch: Path
    facts: dict[str, Any]
    sections: dict[str, Any] = field(default_factory=dict[str, Any])

    def settle(self, name: str, found: dict[str, Any]) -> None:
        """Keep what a section came to, and write everything."""
        self.sections[name] = found
        payload = {**self.facts, "sections": self.sections}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        before = self.file.with_suffix(".json.new")
        before.write_text(json.dumps(payload, indent=1) + "\n")
        before.replace(self.file)
        self.file.with_suffix(".html").write_text(gpu_page.page(payload), encoding="utf-8")
        said = found.get("failed") or found.get("skipped") or f"{found['seconds']:.0f} s"
        note(f"{name}: {said}")

    def result(self, name: str) -> Path:
        return self.scratch / f"{slug(name)}.json"

    def began(self, name: str) -> Path:
        return self.scratch / f"{slug(name)}.began"


#: Seconds that a section may take, what is compiled at first use included.
_LIMITS = {"texts": 300.0, "steps": 300.0, "replay": 480.0, "exact": 240.0, "beams": 240.0}
_OTHERS = 200.0


def plan(shapes: Seq[str], kinds: Seq[str]) -> list[Section]:
    """All sections, the largest shape's first; those of a shape together, as they share a model."""
    own = [kind for kind in kinds if kind not in gpu_sections.PEERS]
    found = [
        Section(kind, shape, _LIMITS.get(kind, _OTHERS))
        for shape in reversed(shapes)
        for kind in own
        if kind != "texts"
    ]
    if {"replay", *gpu_sections.PEERS} & set(kinds):
        found.insert(0, Section("texts", limit=_LIMITS["texts"]))
    peers = [kind for kind in kinds if kind in gpu_sections.PEERS]
    return found + [
        Section(peer, shape, _LIMITS["steps"], alone=True)
        for peer in peers
        for shape in reversed(shapes)
    ]


def run(sections: Seq[Section], book: Book, command: list[str], seconds: float) -> None:
    """Settle every section; children that die or take too long cost the section they were at."""
    deadline = time.monotonic() + seconds
    left = list(sections)
    while left:
        if time.monotonic() > deadline:
            for section in left:
                book.settle(section.name, {"skipped": f"no time left of {seconds:.0f} s"})
            return
        if left[0].alone and (reason := gpu_sections.missing(left[0].kind)):
            book.settle(left.pop(0).name, {"skipped": reason})
            continue
        count = next((i for i, s in enumerate(left) if s.alone), len(left)) or 1
        _child(left[:count], book, command, deadline)
        before = len(left)
        left = [s for s in left if s.name not in book.sections]
        if len(left) == before:
            book.settle(left.pop(0).name, {"failed": _last_words(book)})


def _child(sections: Seq[Section], book: Book, command: list[str], deadline: float) -> None:
    """Run sections in one process until it ends, one is too slow, or time is up."""
    names = [s.name for s in sections]
    limits = {s.name: s.limit for s in sections}
    with (book.scratch / "log.txt").open("ab") as log:
        child = subprocess.Popen([*command, "--child", *names], stdout=log, stderr=log, cwd=ROOT)
    try:
        while True:
            code = child.poll()
            _collect(names, book)
            current = next((n for n in names if book.began(n).exists()), None)
            if code is not None:
                if current and current not in book.sections:
                    reason = f"its process ended with {code}: {_last_words(book)}"
                    book.settle(current, {"failed": reason})
                return
            since = book.began(current).stat().st_mtime if current else time.time()
            if current and time.time() - since > limits[current]:
                child.kill()
                child.wait()
                book.settle(current, {"failed": f"took longer than {limits[current]:.0f} s"})
                return
            if time.monotonic() > deadline:
                return
            time.sleep(_POLL)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        for name in names:
            book.began(name).unlink(missing_ok=True)


def _collect(names: Seq[str], book: Book) -> None:
    for name in names:
        if name not in book.sections and book.result(name).exists():
            book.settle(name, json.loads(book.result(name).read_text()))


def _last_words(book: Book) -> str:
    log = (book.scratch / "log.txt").read_text(errors="replace").strip().splitlines()
    return log[-1][:300] if log else "it said nothing"


def child(names: Seq[str], book: Book, settings: gpu_sections.Settings) -> int:
    """Measure sections one after another. After a failure this process is not to be trusted: the
    rest is for another one."""
    bench = gpu_sections.Bench(settings, book.scratch)
    for name in names:
        kind, _, shape = name.partition(" ")
        book.began(name).touch()
        start = time.perf_counter()
        found: dict[str, Any] = {"where": gpu_sections.where(settings.device), "seed": 0}
        try:
            found |= {"result": bench.measure(kind, shape)}
        except Exception as error:  # noqa: BLE001 - the other sections are worth having
            found |= {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        found["seconds"] = round(time.perf_counter() - start, 1)
        whole = book.result(name).with_suffix(".new")
        whole.write_text(json.dumps(found))
        book.began(name).unlink()
        whole.replace(book.result(name))
        if "failed" in found:
            return _CHILD_FAILED
    return 0


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, write gpu-<device>.json and .html; 1 if a section failed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="tiny shapes and times, on CPU")
    parser.add_argument("--device", help="default: cuda; cpu with --dry")
    parser.add_argument("--shapes", nargs="+", choices=gpu_sections.NAMES)
    parser.add_argument("--sections", nargs="+", choices=gpu_sections.KINDS)
    parser.add_argument("--seconds", type=float, default=2100.0, help="of everything together")
    parser.add_argument("--texts", type=Path, default=SHARED / "data" / "texts")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of what is written")
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    device = args.device or ("cpu" if args.dry else "cuda")
    settings = gpu_sections.Settings.of(device, args.texts, dry=args.dry)
    if args.child:
        if args.dry:  # a compiler would take longer than all of it, and is no part of it
            FrozenRunner.backend = "eager"
        return child(args.child, Book(Path(), args.scratch, {}), settings)
    if reason := gpu_sections.unusable(device):
        parser.error(reason)
    shapes = args.shapes or gpu_sections.shapes_of(dry=args.dry)
    sections = plan(shapes, args.sections or gpu_sections.KINDS)
    name = f"gpu-{slug(gpu_sections.device_name(device))}{'-dry' if args.dry else ''}"
    here = gpu_sections.where(device)
    facts = {
        "benchmark": name, "seed": 0, "dry_run": args.dry, "dtype": "bfloat16",
        "machine": machine() | {"gpu": here["card"]}, "where": here,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        book = Book(args.results / f"{name}.json", Path(scratch), facts)
        command = [sys.executable, __file__, "--scratch", scratch, "--device", device]
        command += ["--texts", str(args.texts), *(["--dry"] if args.dry else [])]
        run(sections, book, command, args.seconds)
    print(json.dumps({**facts, "sections": book.sections}), flush=True)
    note(f"written: {book.file} and {book.file.with_suffix('.html').name}")
    return int(any("failed" in found for found in book.sections.values()))


if __name__ == "__main__":
    raise SystemExit(main())
