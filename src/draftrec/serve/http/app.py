"""The application: routes, gate and error answers around a service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from draftrec import __version__
from draftrec.errors import DraftrecError
from draftrec.serve.dashboard import app as dashboard
from draftrec.serve.http import api
from draftrec.serve.http.docs_page import render_docs
from draftrec.serve.http.errors import ApiError, of_status, of_validation
from draftrec.serve.http.gate import Gate
from draftrec.serve.service import Service

_DESCRIPTION = (
    "Recommendations and texts of large language models, drafted cheaply and verified in one "
    "forward pass. Requests of all clients run in one batch."
)


def create_app(service: Service) -> FastAPI:
    """The service over HTTP. Its engines run from the application's start to its end."""

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(
        title="draftrec",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # FastAPI's page loads scripts from elsewhere
        redoc_url=None,
        lifespan=running,
    )
    _add_routes(app, service)
    _add_errors(app)
    app.add_middleware(Gate, service=service)  # type: ignore[arg-type]
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    if service.recommend and service.recommending:
        app.include_router(api.recommend_router(service, service.recommend, service.recommending))
    if service.knowledge and service.writing:
        app.include_router(api.knowledge_router(service, service.knowledge, service.writing))
    app.include_router(api.admin_router(service))
    app.include_router(api.health_router(service))
    app.include_router(
        dashboard.router(service.folders, service.metrics, lambda: service.lifecycle.draining)
    )

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(render_docs(app.openapi()))


def _add_errors(app: FastAPI) -> None:
    def told(error: ApiError) -> Response:
        return Response(error.body(), error.status, error.headers, "application/json")

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        request.state.note.error = error.code
        return told(error)

    @app.exception_handler(DraftrecError)
    async def unusable(request: Request, error: DraftrecError) -> Response:
        return await refused(request, ApiError(422, "unusable", " ".join(str(error).split())))

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
