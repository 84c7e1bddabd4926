"""`draftrec serve`: recommendations and texts over HTTP; and `draftrec dashboard`: watch runs in a
browser, while they go on and after.
"""

from __future__ import annotations

import json as json_module
import math
import socket
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from draftrec.cli.command import DONE, command, print_json
from draftrec.cli.knobs import READ, argument, option, option_of
from draftrec.cli.messages import StopSignal, say
from draftrec.cli.options import JsonOptions, Options
from draftrec.config import ListenConfig
from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError, not_installed

_USUAL = ListenConfig()
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions(Options):
    """The command line of `draftrec serve`. None: as the settings file says."""

    config: Place | None = option(
        "YAML file: models, limits, keys. See deploy/.", metavar="FILE", place=READ
    )
    demo: bool = option("Serve the embedded models.", default=False)
    host: str | None = option_of(ListenConfig, "host", default=None, show_default=_USUAL.host)
    port: int | None = option_of(ListenConfig, "port", default=None, show_default=str(_USUAL.port))


@command(ServeOptions)
def serve(options: ServeOptions) -> int:
    """Answer HTTP requests until SIGTERM or Ctrl-C; requests of all clients share one batch.

    Standard output has a JSON line per request. SIGHUP reads catalogue and pool again.
    """
    if (options.config is None) == (not options.demo):
        raise DraftrecError("give --config a YAML file, or --demo for the embedded models")
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise not_installed("serve", f"the service needs {missing[0]}")
    try:
        from draftrec.serve.http.app import serve as run

        settings, sources = _what(options)
        run(settings, sources, say)
    except KeyboardInterrupt:  # while models load; once it serves, a signal drains it
        say("ended before anything was served")
    return DONE


def _what(options: ServeOptions) -> tuple[Any, Any]:
    """Settings, with those of the command line, and what they name."""
    from draftrec.serve.service import demo_sources, sources_of
    from draftrec.serve.settings import demo_settings, load_settings

    settings = load_settings(options.config) if options.config else demo_settings()
    given = {"host": options.host, "port": options.port}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = settings.model_copy(update=changes)
    return settings, demo_sources() if options.demo else sources_of(settings)


_PORT = 8081  # so that a service can run beside it


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardOptions(JsonOptions):
    """The command line of `draftrec dashboard`."""

    folders: list[Path] = argument(
        "RUN_DIR...", "Folders of generate, compare, ctr or genrec, or folders that hold such."
    )
    host: str = option_of(ListenConfig, "host")
    port: int = option_of(ListenConfig, "port", default=_PORT)
    price_per_hour: float | None = option(
        "What an hour of the machine costs; the page asks too.", min=0.0
    )


@command(DashboardOptions)
def dashboard(options: DashboardOptions) -> int:
    """Show speed, acceptance, pools, quality, cost and advice of RUN_DIR... on one page.

    With --json, print the page's data and do not serve it.
    """
    from draftrec.serve.dashboard.sources import LOOK_SECONDS, RunSources
    from draftrec.serve.listening import address, is_loopback, listen

    patience = math.inf if options.json else LOOK_SECONDS
    sources = RunSources(options.folders, options.price_per_hour, seconds=patience)
    if options.json:
        print_json(json_module.loads(sources.snapshot().json))
        return DONE
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise not_installed("serve", "the dashboard needs FastAPI")
    listening = listen(options.host, options.port)
    say(f"the dashboard is at {address(listening)}/dashboard; Ctrl-C ends it")
    if not is_loopback(options.host):
        say(f"it listens on {options.host}: whoever reaches that address can read these runs")
    _serve(sources, listening)
    return DONE


def _serve(sources: object, listening: socket.socket) -> None:
    import uvicorn

    from draftrec.serve.dashboard.app import application

    server = uvicorn.Server(
        uvicorn.Config(
            application(sources, lambda: server.should_exit),  # type: ignore[arg-type]
            log_level="warning",
            timeout_graceful_shutdown=3,
        )
    )
    # uvicorn ends in good order on a signal and then raises it once more, for whoever asked.
    with StopSignal(), suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
