"""`--track`: settings, numbers over time and the summary of a job or a training, told to MLflow,
Weights & Biases or TensorBoard, which are configured as their users do it, by their own variables.

What is told never decides what is done: a library that fails on the way is left alone from then on,
which is said.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.cli.messages import say, warn
from draftrec.cli.options import Options
from draftrec.core import Counts
from draftrec.errors import DraftrecError, Interrupted, not_installed

if TYPE_CHECKING:
    from draftrec.engine.text.stats import StepStats
    from draftrec.train.teacher_files import TeacherManifest

Numbers = Mapping[str, float]

#: The package, and the extra that brings it.
_NEEDED = {
    "mlflow": ("mlflow", "mlflow"),
    "wandb": ("wandb", "wandb"),
    "tensorboard": ("tensorboard", "train"),
}
#: Seconds between two numbers of one kind.
_SECONDS = 5.0
#: Where runs are put whose user has not said where.
_PROJECT = "draftrec"
#: Options that say how a command talks, not what it does.
_SILENT = {"track", *(f.name for f in fields(Options)), "json"}


@contextmanager
def tracked(kind: str | None, output: object, options: Options | None) -> Iterator[Tracker]:
    """A tracker of what a command does, by the library that `kind` names, whose run ends as the
    block does. `output` names the run; commands that need none may have None.

    Raises DraftrecError where the library is missing, or cannot be used.
    """
    if kind is None or options is None:
        yield Tracker()
        return
    package, extra = _NEEDED[kind]
    if find_spec(package) is None:
        raise not_installed(extra, f"--track {kind} needs the package {package}")
    if kind == "tensorboard" and (output is None or "://" in str(output)):
        what = "which is missing" if output is None else f"which is {output}"
        raise DraftrecError(
            f"--track tensorboard writes files of this machine beside --output, {what}; give an "
            "--output here, or track with mlflow or wandb"
        )
    given = {f.name: getattr(options, f.name) for f in fields(options)}
    given = {n: v[0] if isinstance(v, list) and len(v) == 1 else v for n, v in given.items()}
    settings = {n: str(v) for n, v in given.items() if n not in _SILENT and v is not None}
    tracker = Tracker(lambda: _OPEN[kind](Path(str(output or _PROJECT)), settings))
    ended = "failed"
    try:
        yield tracker
        ended = "finished"
    except (Interrupted, KeyboardInterrupt):
        ended = "stopped"
        raise
    finally:
        tracker.close(ended)


class Tracker:
    """Tells a library of a run, which begins with the first thing there is to tell: a command that
    refuses its input leaves none behind. This one does nothing without `begin`."""

    def __init__(self, begin: Callable[[], Backend] | None = None) -> None:
        self._begin, self._backend = begin, None
        self._step = 0
        self._told: dict[str, float] = {}

    def numbers(self, step: int, values: Numbers) -> None:
        """How things stand after `step` tokens, users or steps of training, whatever there are."""
        self._step = step
        self._tell(lambda backend: backend.numbers(step, values))

    def now_and_then(self, name: str, step: int, values: Callable[[], Numbers]) -> None:
        """The same, at most once in a few seconds for each `name`."""
        now = time.monotonic()
        if self._begin and now - self._told.get(name, -math.inf) >= _SECONDS:
            self._told[name] = now
            self.numbers(step, values())

    def end(self, summary: Mapping[str, Any]) -> None:
        """What it came to, if there was anything to do: the numbers of a summary, those within
        others by both names."""
        found = dict(_flat(summary))
        if self._backend:
            self._tell(lambda backend: backend.summary(self._step, found))

    def close(self, ended: str) -> None:
        """The run is over: "finished", "failed" or "stopped". Nothing is told from now on."""
        if self._backend:
            self._tell(lambda backend: backend.close(ended))
        self._begin = None

    def _tell(self, what: Callable[[Backend], None]) -> None:
        if self._begin is None:
            return
        try:
            self._backend = self._backend or self._begin()
            what(self._backend)
        except Exception as error:  # noqa: BLE001 - theirs are many, and the work goes on
            self._begin = None
            warn(f"--track ends here, the work goes on: {type(error).__name__}: {error}"[:500])


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{before}{name}", float(value)


@dataclass(frozen=True, slots=True)
class Backend:
    """What a library is told with."""

    numbers: Callable[[int, Numbers], None]
    summary: Callable[[int, Numbers], None]
    close: Callable[[str], None]


def _mlflow(output: Path, settings: dict[str, str]) -> Backend:
    mlflow = import_module("mlflow")
    if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
        mlflow.set_experiment(_PROJECT)
    run = mlflow.start_run(run_name=output.name)
    say(f"tracked by MLflow at {mlflow.get_tracking_uri()} as run {run.info.run_id}")
    status = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
    mlflow.log_params({name: value[:500] for name, value in settings.items()})

    def numbers(step: int | None, values: Numbers, before: str = "") -> None:
        # A name with any other sign is refused: recall@10.
        named = {re.sub(r"[^\w./: -]", "_at_", before + n): v for n, v in values.items()}
        mlflow.log_metrics(named, step=step)

    return Backend(
        numbers,
        lambda step, values: numbers(None, values, "summary/"),
        lambda ended: mlflow.end_run(status[ended]),
    )


def _wandb(output: Path, settings: dict[str, str]) -> Backend:
    wandb = import_module("wandb")
    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    run = wandb.init(project=project, name=output.name, config=settings)
    return Backend(
        lambda step, values: run.log(dict(values), step=step),
        lambda step, values: run.summary.update(dict(values)),
        lambda ended: run.finish(exit_code=0 if ended == "finished" else 1),
    )


def _tensorboard(output: Path, settings: dict[str, str]) -> Backend:
    from draftrec.train.files import event_writer

    # Beside the output, as some outputs are files, and some folders are emptied by --overwrite.
    folder = output.with_name(f"{output.name}.logs")
    writer = event_writer(folder)
    say(f"TensorBoard's files are in {folder}")
    rows = "".join(f"| {name} | `{value}` |\n" for name, value in settings.items())
    writer.add_text("settings", f"| option | value |\n|---|---|\n{rows}")

    def numbers(step: int, values: Numbers) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Backend(
        numbers,
        lambda step, values: numbers(step, {f"summary/{n}": v for n, v in values.items()}),
        lambda ended: writer.close(),
    )


_OPEN = {"mlflow": _mlflow, "wandb": _wandb, "tensorboard": _tensorboard}


class Beside:
    """A watcher, and listeners that are told what some of its methods are told, after it."""

    def __init__(self, watcher: Any, **listeners: Callable[..., None]) -> None:
        self._watcher, self._listeners = watcher, listeners

    def __getattr__(self, name: str) -> Any:
        method, listener = getattr(self._watcher, name), self._listeners.get(name)
        if listener is None:
            return method

        def both(*args: Any) -> None:
            method(*args)
            listener(*args)

        return both


def of_job(tracker: Tracker, watcher: Any) -> Any:
    """A watcher of `generate` that tells the tracker too: rates by the new tokens of this life."""
    counts, tokens, texts = Counts(), 0, 0
    began = time.monotonic()

    def now() -> Numbers:
        speed = tokens / max(time.monotonic() - began, 1e-9)
        return {"texts": texts, "tokens_per_second": speed, **counts.rates(tokens)}

    def begin(*_: Any) -> None:
        nonlocal began
        began = time.monotonic()

    def step(done: StepStats) -> None:
        nonlocal counts, tokens, texts
        counts, tokens, texts = (
            counts + Counts.of(done),
            tokens + done.new_tokens,
            texts + done.finished,
        )
        tracker.now_and_then("steps", tokens, now)

    def shard(_manifest: Any) -> None:
        tracker.numbers(tokens, now())

    return Beside(watcher, begin=begin, step=step, shard=shard)


def of_training(tracker: Tracker, watcher: Any) -> Any:
    """A watcher of a training that tells the tracker too: the loss by steps, and every epoch."""
    steps = 0

    def begin(progress: Any, _total: int) -> None:
        nonlocal steps
        steps = progress.step + sum(int(epoch["steps"]) for epoch in progress.epochs)

    def step(_progress: Any, loss: float) -> None:
        nonlocal steps
        steps += 1
        tracker.now_and_then("loss", steps, lambda: {"loss": loss})

    def epoch(record: dict[str, float]) -> None:
        tracker.numbers(steps, {n: v for n, v in record.items() if n != "steps"})

    return Beside(watcher, begin=begin, step=step, epoch=epoch)


def of_recording(tracker: Tracker, watcher: Any) -> Any:
    """A watcher of `teach` that tells the tracker too: the contexts recorded."""
    state = of_state(tracker, lambda *_: None, "contexts")

    def told(manifest: TeacherManifest) -> None:
        state(sum(manifest.shards), manifest.total)

    def begin(manifest: TeacherManifest) -> None:
        if not manifest.finished:
            told(manifest)

    return Beside(watcher, begin=begin, shard=told)


def of_count(tracker: Tracker, watch: Callable[..., None], name: str) -> Callable[..., None]:
    """A function that is told how many more (`done`) there are, which tells the tracker too."""
    total = 0
    state = of_state(tracker, lambda *_: None, name, 0)

    def told(done: int) -> None:
        nonlocal total
        watch(done)
        total += done
        state(total, 0)

    return told


def of_state(
    tracker: Tracker, watch: Callable[..., None], name: str, before: int | None = None
) -> Callable[..., None]:
    """A function that is told how many are done, of how many, which tells the tracker too. Rates
    are those of this life, which began with `before`, or with what is told first."""
    began = time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal before
        watch(done, total)
        before = done if before is None else before
        seconds = max(time.monotonic() - began, 1e-9)
        values = {name: float(done), f"{name}_per_second": (done - before) / seconds}
        tracker.now_and_then(name, done, lambda: values)

    return told
