"""`draftrec serve`: recommendations and texts over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from draftrec.cli.common import DONE, DebugOption, command, say
from draftrec.cli.options.places import READ
from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The command line of `draftrec serve`."""

    config: Annotated[
        Place | None,
        READ,
        typer.Option(metavar="FILE", help="YAML file: models, limits, keys. See deploy/."),
    ] = None
    demo: Annotated[bool, typer.Option("--demo", help="Serve the embedded models.")] = False
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 127.0.0.1 if nobody says.")
    ] = None
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="8080 if nobody says; 0: any free one.")
    ] = None
    debug: DebugOption = False


@command(ServeOptions)
def serve(options: ServeOptions) -> int:
    """Answer HTTP requests until SIGTERM or Ctrl-C; requests of all clients share one batch.

    Standard output has a JSON line per request. SIGHUP reads catalogue and pool again.
    """
    if (options.config is None) == (not options.demo):
        raise DraftrecError("give --config a YAML file, or --demo for the embedded models")
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise DraftrecError(
            f'the service needs {missing[0]}; install it with pip install "draftrec[serve]"'
        )
    from draftrec.serve.run import serve as run

    settings, sources = _what(options)
    run(settings, sources, say)
    return DONE


def _what(options: ServeOptions) -> tuple[Any, Any]:
    """Settings, with those of the command line, and what they name."""
    from draftrec.serve.loading import demo_sources, sources_of
    from draftrec.serve.settings import demo_settings, load_settings

    settings = load_settings(options.config) if options.config else demo_settings()
    given = {"host": options.host, "port": options.port}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = settings.model_copy(update=changes)
    return settings, demo_sources() if options.demo else sources_of(settings)
