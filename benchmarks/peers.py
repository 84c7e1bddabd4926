"""Other engines that write texts on a CPU. None is needed by draftrec: a benchmark takes those that
are installed, and says why it left out the others."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import note
from peer_llama_cpp import LlamaCpp
from peer_openvino import OpenVino

PEERS: dict[str, Any] = {"llama_cpp": LlamaCpp, "openvino": OpenVino}


def start_engines(
    peers: Mapping[str, Any],
    model: Any,
    scratch: Path,
    options: Mapping[str, Mapping[str, Any]] = {},
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The engines, with their options, over the weights of `model`, which is in float32, and what
    is known of each: its version and numbers, or why it was skipped."""
    started: dict[str, Any] = {}
    known: dict[str, Any] = {}
    for name, engine in peers.items():
        absent = [m for m in engine.modules if importlib.util.find_spec(m) is None]
        if absent:
            known[name] = {"skipped": f"{', '.join(absent)} not installed"}
            continue
        folder = scratch / name
        folder.mkdir()
        try:
            started[name] = engine(model, folder, **options.get(name, {}))
            known[name] = started[name].about
        except Exception as error:  # noqa: BLE001 - the other ways are worth measuring
            known[name] = skipped(error)
        note(f"{name}: {known[name]}")
    return started, known


def skipped(error: Exception) -> dict[str, str]:
    """What is known of an engine that failed."""
    return {"skipped": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
