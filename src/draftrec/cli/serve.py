"""`draftrec serve`: recommendations and texts over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from draftrec.cli.command import DONE, command
from draftrec.cli.messages import say
from draftrec.cli.options.knobs import option, option_of
from draftrec.cli.options.places import READ
from draftrec.cli.options.shared import Options
from draftrec.config import ListenConfig
from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError

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
