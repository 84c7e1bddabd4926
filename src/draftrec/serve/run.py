"""From settings to a running server, and to its end."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import os
import socket
import sys
from collections.abc import Callable
from typing import TextIO

import uvicorn

from draftrec.errors import DraftrecError
from draftrec.serve.http.app import create_app
from draftrec.serve.http.lifecycle import DrainingServer, protocol
from draftrec.serve.http.schemas import ApiError
from draftrec.serve.logs import RequestLog
from draftrec.serve.service import Service, ServiceSources
from draftrec.serve.settings import ServeSettings

# After the port has closed: for pages that keep a connection open, such as a live dashboard.
_LAST_SECONDS = 2


def serve(settings: ServeSettings, sources: ServiceSources, say: Callable[[str], None]) -> None:
    """Load, listen, and answer until a signal ends it. Log lines go to standard output.

    Raises DraftrecError for what cannot be loaded and a port that cannot be had, and whatever broke
    an engine.
    """
    listener = _listen(settings.host, settings.port)
    with listener:
        if warning := exposure(settings):
            say(warning)
        say("loading models")
        log = RequestLog(_unbuffered(sys.stdout), contents=settings.log_contents)
        service = Service(settings, sources, log)
        server = make_server(service)
        say(f"serving on {address(listener)}, process {os.getpid()}; see /docs")
        server.run(sockets=[listener])
        log.flush()
    if service.broken:
        raise service.broken
    left = server.unanswered
    say(f"ended without answering {left} requests" if left else "everything accepted was answered")


def make_server(service: Service) -> DrainingServer:
    """A server for the service's application."""
    settings = service.settings
    config = uvicorn.Config(
        create_app(service),
        access_log=False,
        log_config=None,
        log_level="error",
        http=protocol(settings.limits),
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=_LAST_SECONDS,
        server_header=False,
    )
    reloads: set[asyncio.Task[None]] = set()

    async def check() -> None:
        if service.broken:
            server.should_exit = True
        if service.lifecycle.reload_wanted:
            service.lifecycle.reload_wanted = False
            task = asyncio.create_task(_reload(service))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

    server = DrainingServer(config, service.lifecycle, check)
    return server


def exposure(settings: ServeSettings) -> str | None:
    """A warning for a service that others can reach and nobody guards."""
    guarded = bool(settings.keys)
    if (guarded and settings.monitoring == "key") or settings.host == "localhost":
        return None
    try:
        if ipaddress.ip_address(settings.host).is_loopback:
            return None
    except ValueError:
        pass  # a name, which may resolve to anything
    if guarded:
        return (
            f"warning: {settings.host} can be reached from elsewhere and /metrics and /dashboard "
            "need no key; set monitoring: key, or keep to 127.0.0.1"
        )
    return (
        f"warning: {settings.host} can be reached from elsewhere and there are no API keys, so "
        "anyone may ask; list keys in the settings, or keep to 127.0.0.1"
    )


def address(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _reload(service: Service) -> None:
    """What SIGHUP asks for. A failure is logged, and the old files stay."""
    try:
        await service.reload()
    except ApiError as error:
        service.log.write("reload_refused", message=error.message)


def _unbuffered(stream: TextIO) -> TextIO:
    """Another writer to where `stream` writes. A reader that stalls would hold the lock of
    `stream`'s own buffer, for which Python waits when it ends."""
    try:
        raw = open(stream.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115 - never closed
    except (OSError, ValueError):
        return stream  # no file, as in tests
    return io.TextIOWrapper(raw, encoding="utf-8", write_through=True)  # type: ignore[arg-type]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # Head and body of an answer are two small packets, and connections inherit this: otherwise
        # the second one waits for the client's (delayed) acknowledgement of the first, some 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        reason = reason.partition(" (while")[0].lower()
        raise DraftrecError(
            f"port {port} of {host} cannot be had ({reason}); choose another --port or --host"
        ) from error
