"""The application: routes, gate and error answers around a service; `GET /docs`, the OpenAPI
document as a page that needs no script and no network; and from settings to a running server, and
to its end.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from draftrec import __version__
from draftrec.errors import DraftrecError
from draftrec.serve.dashboard import app as dashboard
from draftrec.serve.http import api, completions
from draftrec.serve.http.auth import login_router
from draftrec.serve.http.gate import GUARDED, MONITORING, Gate
from draftrec.serve.http.lifecycle import DrainingServer, protocol
from draftrec.serve.http.schemas import ApiError, of_status, of_validation
from draftrec.serve.listening import address, is_loopback, listen
from draftrec.serve.logs import RequestLog
from draftrec.serve.service import Service, ServiceSources
from draftrec.serve.settings import ServeSettings

#: Objects in objects of a body whose fields are told.
_DEEPEST = 3
_METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. `fields`: name, kind, meaning and whether it must be given, of the body."""

    method: str
    path: str
    summary: str
    fields: tuple[tuple[str, str, str, bool], ...]
    example: str | None
    curl: str
    answer: str | None
    statuses: tuple[tuple[str, str], ...]


def render_docs(document: dict[str, Any], base: str = "http://127.0.0.1:8080") -> str:
    """The page of an OpenAPI 3 document, for a service that is asked at `base`."""
    environment = Environment(
        loader=PackageLoader("draftrec.serve.http", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("docs.html.j2").render(
        info=document["info"], operations=operations(document, base)
    )


def operations(document: dict[str, Any], base: str) -> list[Operation]:
    """All routes of the document, in its order."""
    return [
        _operation(document, method, path, found, base)
        for path, methods in document["paths"].items()
        for method, found in methods.items()
        if method in _METHODS
    ]


def _operation(
    document: dict[str, Any], method: str, path: str, found: dict[str, Any], base: str
) -> Operation:
    asked = _schemas(document, found.get("requestBody", {}))
    answered = _schemas(document, found["responses"].get("200", {}))
    example = _example(asked)
    return Operation(
        method.upper(),
        path,
        found.get("description", found.get("summary", "")),
        tuple(_fields_of_forms(document, asked)),
        None if example is None else json.dumps(example, indent=2),
        _curl(method, base + path, example, key="security" in found),
        None if (told := _example(answered)) is None else json.dumps(told, indent=2),
        tuple((status, r["description"]) for status, r in found["responses"].items()),
    )


def _schemas(document: dict[str, Any], holder: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON schemas of a body, one for each form that it may have, references resolved."""
    found = holder.get("content", {}).get("application/json", {}).get("schema", {})
    return [_named(document, form) for form in found.get("oneOf", found.get("anyOf", (found,)))]


def _named(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema


def _example(schemas: list[dict[str, Any]]) -> Any:
    return next((example for schema in schemas for example in schema.get("examples", ())), None)


def _fields_of_forms(
    document: dict[str, Any], schemas: list[dict[str, Any]]
) -> list[tuple[str, str, str, bool]]:
    """Of all forms of a body, each once; what every form needs must be given."""
    forms = [_fields(document, schema) for schema in schemas]
    needed = set.intersection(*({f[0] for f in form if f[3]} for form in forms))
    told = {
        field[0]: (*field[:3], field[0] in needed) for form in reversed(forms) for field in form
    }
    order = dict.fromkeys(field[0] for form in forms for field in form)
    return [told[name] for name in order]


def _fields(
    document: dict[str, Any], schema: dict[str, Any], outer: str = "", depth: int = 0
) -> list[tuple[str, str, str, bool]]:
    """Of an object, those of objects in it after it: `records`, `records[].prompt`."""
    required = schema.get("required", ())
    found: list[tuple[str, str, str, bool]] = []
    for name, field in schema.get("properties", {}).items():
        place = outer + name
        found.append((place, _kind(field), field.get("description", ""), name in required))
        for option in _options(field) if depth < _DEEPEST else ():
            many = option.get("type") == "array"
            inner = _named(document, option.get("items", {}) if many else option)
            found += _fields(document, inner, f"{place}[]." if many else f"{place}.", depth + 1)
    return found


def _options(field: dict[str, Any]) -> list[dict[str, Any]]:
    return [f for f in field.get("anyOf", (field,)) if f.get("type") != "null"]


def _kind(field: dict[str, Any]) -> str:
    """`list of integer or string`, `KnowledgeRecord`: a word or two for a schema."""
    return " or ".join(dict.fromkeys(map(_kind_of, _options(field)))) or "any"


def _kind_of(option: dict[str, Any]) -> str:
    if "$ref" in option:
        return str(option["$ref"]).rpartition("/")[2]
    if option.get("type") == "array":
        return f"list of {_kind(option.get('items', {}))}"
    return str(option.get("type", "any"))


def _curl(method: str, url: str, example: Any, *, key: bool) -> str:
    words = ["curl"]
    if method != "get":
        words.append(f"-X {method.upper()}")
    words.append(shlex.quote(url))
    if key:
        words.append('-H "authorization: Bearer $KEY"')
    if example is not None:
        words.append(f"-H 'content-type: application/json' -d {shlex.quote(json.dumps(example))}")
    return " ".join(words)


_DESCRIPTION = (
    "Recommendations and texts of large language models, drafted cheaply and verified in one "
    "forward pass. Requests of all clients run in one batch."
)


def create_app(service: Service) -> FastAPI:
    """The service over HTTP. Its threads run from the application's start to its end."""
    app = FastAPI(
        title="draftrec",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # FastAPI's page loads scripts from elsewhere
        redoc_url=None,
        lifespan=_life_of(service),
    )
    _add_routes(app, service)
    _add_errors(app)
    settings = service.settings
    if settings.allowed_hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.allowed_hosts))
    app.add_middleware(Gate, service=service)  # type: ignore[arg-type]
    if settings.cors_origins:  # outside of the gate: what browsers ask first has no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers sends some ten of its own
            expose_headers=["retry-after", "x-request-id"],
        )
    return app


def _life_of(service: Service) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """What an application does as it starts, and as it ends."""

    @asynccontextmanager
    async def running(app: Any) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(service.note_loop_error)
        service.start()
        try:
            yield
        except asyncio.CancelledError:
            return  # a second signal leaves no time; who does not say so has a traceback logged
        service.stop()

    return running


def _add_routes(app: FastAPI, service: Service) -> None:
    if service.recommend and service.recommending:
        app.include_router(api.recommend_router(service, service.recommend, service.recommending))
    if service.knowledge and service.writing:
        app.include_router(api.knowledge_router(service, service.knowledge, service.writing))
        app.include_router(completions.router(service, service.knowledge, service.writing))
    app.include_router(api.admin_router(service))
    app.include_router(api.health_router(service))
    signing_in = service.guarded
    if signing_in:
        app.include_router(login_router(service))
    app.include_router(
        dashboard.router(
            service.folders,
            service.metrics,
            lambda: service.lifecycle.draining,
            service.about,
            account="login" if signing_in else None,
        )
    )

    if service.keyring:
        _tell_of_keys(app, pages=signing_in)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(render_docs(app.openapi(), str(request.base_url).rstrip("/")))


def _tell_of_keys(app: FastAPI, *, pages: bool) -> None:
    """Say in the OpenAPI document which routes need a key; the gate asks for it, not they."""
    plain = app.openapi
    guarded = (*GUARDED, *(MONITORING if pages else ()))

    def told() -> dict[str, Any]:
        document = plain()
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["key"] = {"type": "http", "scheme": "bearer"}
        for path, methods in document["paths"].items():
            for operation in methods.values() if path.startswith(guarded) else ():
                operation["security"] = [{"key": []}]
        return document

    app.openapi = told  # type: ignore[method-assign]


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        note = request.state.note
        note.error = error.code
        status, body = error.answer(note.route)
        return Response(body, status, error.headers, "application/json")

    @app.exception_handler(DraftrecError)
    async def unusable(request: Request, error: DraftrecError) -> Response:
        return await refused(request, api.failed(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await refused(request, of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        found = of_status(error.status_code, _detail(error, request))
        found.headers.update(error.headers or {})
        return await refused(request, found)


def _detail(error: HTTPException, request: Request) -> Any:
    if error.status_code == 404:
        return "there is nothing here; /docs lists what this service serves"
    if error.status_code == 405:
        return f"{request.method} is not possible here; /docs says what is"
    return str(error.detail)


# After the port has closed: for pages that keep a connection open, such as a live dashboard.
_LAST_SECONDS = 2


def serve(settings: ServeSettings, sources: ServiceSources, say: Callable[[str], None]) -> None:
    """Load, listen, and answer until a signal ends it. Log lines go to standard output.

    Raises DraftrecError for what cannot be loaded and a port that cannot be had, and whatever broke
    an engine.
    """
    listener = listen(settings.host, settings.port)
    with listener:
        if warning := exposure(settings):
            say(warning)
        say("loading models")
        early = _early_wish()
        log = RequestLog(_unbuffered(sys.stdout), contents=settings.log_contents)
        service = Service(settings, sources, log)
        service.lifecycle.reload_wanted = bool(early)
        server = make_server(service)
        say(f"serving on {address(listener)}, process {os.getpid()}; see /docs")
        with _heard(server):
            server.run(sockets=[listener])
            service.let_go()  # where a second signal left no time
            log.flush()
    if service.broken:
        raise service.broken
    left = server.unanswered
    say(f"ended without answering {left} requests" if left else "everything accepted was answered")


@contextmanager
def _heard(server: DrainingServer) -> Iterator[None]:
    """Signals are the server's to the end: uvicorn gives them back while its loop is taken down,
    where a third Ctrl-C would end everything with a traceback."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, server.handle_exit)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _early_wish() -> list[int]:
    """Is filled by SIGHUP, by which a process would end that has yet to listen for it."""
    wishes: list[int] = []
    if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, lambda number, _frame: wishes.append(number))
    return wishes


def make_server(service: Service) -> DrainingServer:
    """A server for the service's application."""
    settings = service.settings
    config = uvicorn.Config(
        create_app(service),
        access_log=False,
        log_config=None,
        log_level="error",
        http=protocol(settings.limits),
        ws="none",
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=_LAST_SECONDS,
        server_header=False,
    )
    reloads: set[asyncio.Task[None]] = set()

    async def check() -> None:
        if service.broken:
            server.should_exit = True
        if service.lifecycle.reload_wanted and not service.reloading:
            service.lifecycle.reload_wanted = False
            task = asyncio.create_task(_reload(service))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

    server = DrainingServer(config, service.lifecycle, check)
    return server


def exposure(settings: ServeSettings) -> str | None:
    """A warning for a service that others can reach and nobody guards."""
    guarded = bool(settings.keys)
    if (guarded and settings.monitoring == "key") or is_loopback(settings.host):
        return None
    if guarded:
        return (
            f"warning: {settings.host} can be reached from elsewhere and /metrics and /dashboard "
            "need no key; set monitoring: key, or keep to 127.0.0.1"
        )
    return (
        f"warning: {settings.host} can be reached from elsewhere and there are no API keys, so "
        "anyone may ask; list keys in the settings, or keep to 127.0.0.1"
    )


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
