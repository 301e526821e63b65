"""The HTTP application: its routes, what they take and answer, and the layers around them."""

import json
from collections.abc import Callable, Coroutine
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from hyenadna import __version__
from hyenadna.errors import InputError, SequenceTooLong, UsageError
from hyenadna.serve import schemas
from hyenadna.serve.access_log import AccessLog
from hyenadna.serve.exchange import CODES, Asgi, Message, Receive, Refusal, Scope, Send
from hyenadna.serve.generation import GenerateJob
from hyenadna.serve.jobs import EmbedJob, Job, LikelihoodJob, PredictJob, SubstitutionsJob
from hyenadna.serve.openapi import openapi
from hyenadna.serve.security import Body, Door
from hyenadna.serve.service import Service

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
"""Content types of the page's files; others are not served."""
_EVENTS = {
    "example": 'event: bases\ndata: {"pieces":[{"row":0,"bases":"GAT","nats":[-1.31,-0.98,-1.2]}]}\n\n'
    'event: done\ndata: {"model":"starter","seed":0,"items":[{"row":0,"sequence":"GAT","length":3,"scored":3,'
    '"nats":-3.49,"bits_per_base":1.68,"stopped":"length"}]}\n\n',
}
"""What OpenAPI says of an event stream: without a schema, which some read as that of the whole and some of an event."""
_REFUSALS = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504)


def application(service: Service, token: bytes | None) -> Asgi:
    """The whole application: an ASGI callable.

    Parameters
    ----------
    service : Service
        With a batcher that was started.
    token : bytes, optional
        What clients must show; without it, they must ask for this machine by one of its own names.
    """
    app = FastAPI(
        title="hyenadna",
        version=__version__,
        description="What a DNA language model says of sequences. /v1/models tells the limits.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = _StrictRoute
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(Exception, _defect)
    computing = _routes_of_tasks(app, service) | _route_of_generation(app, service)
    _routes_of_state(app, service)
    _routes_of_page(app)
    app.openapi = lambda: openapi(app, service, is_locked=token is not None)  # type: ignore[method-assign]
    routes = frozenset(route.path for route in app.routes if isinstance(route, APIRoute)) | {"/openapi.json"}
    config = service.config
    body = Body(_Head(app), paths=computing, max_body=config.max_body, max_sequences=config.max_sequences)
    return AccessLog(Door(body, token=token, host=config.host), service, routes)


def _routes_of_tasks(app: FastAPI, service: Service) -> frozenset[str]:
    """Add what reads sequences; returns the paths."""

    async def likelihood(body: schemas.LikelihoodRequest, request: Request) -> Response:
        """How likely sequences are to the model, and each of their bases."""
        return await answer(request, body, LikelihoodJob, per_base=body.per_base, strand=body.strand)

    async def embed(body: schemas.EmbedRequest, request: Request) -> Response:
        """Embeddings of sequences: hidden states of a layer, pooled over the bases."""
        return await answer(request, body, EmbedJob, layer=body.layer, pool=body.pool)

    async def predict(body: schemas.PredictRequest, request: Request) -> Response:
        """What a fine-tuned model predicts of sequences."""
        names = list(service.model.adapters)
        if not names or body.adapter not in (None, *names):
            there = f"there is {', '.join(names)}" if names else "hyena serve MODEL --adapter NAME=PATH adds one"
            raise Refusal(404, f"this server has no such adapter; {there}")
        return await answer(request, body, PredictJob, adapter=body.adapter)

    async def substitutions(body: schemas.SubstitutionsRequest, request: Request) -> Response:
        """The effect of every single-base change, as a log-likelihood ratio."""
        return await answer(request, body, SubstitutionsJob, strand=body.strand)

    async def answer(request: Request, body: schemas.Request, kind: Callable[..., Job], **options: Any) -> Response:
        sequences = body.named_sequences()
        service.check_sequences(sequences)
        try:
            job = kind(model=service.model, sequences=sequences, **options)
        except UsageError as error:
            raise Refusal(422, str(error)) from error
        return await service.answer(request, job, body.timeout_s)

    tasks: dict[str, tuple[Callable[..., Any], type[schemas.Answer]]] = {
        "/v1/likelihood": (likelihood, schemas.LikelihoodAnswer),
        "/v1/embed": (embed, schemas.EmbedAnswer),
        "/v1/predict": (predict, schemas.PredictAnswer),
        "/v1/substitutions": (substitutions, schemas.SubstitutionsAnswer),
    }
    for path, (task, model) in tasks.items():
        app.add_api_route(path, task, methods=["POST"], response_model=model, responses=_refusals(*_REFUSALS))
    return frozenset(tasks)


def _route_of_generation(app: FastAPI, service: Service) -> frozenset[str]:
    """Add what writes sequences; returns its path."""

    async def generate(body: schemas.GenerateRequest, request: Request) -> Response:
        """Sequences that the model writes, each going on from the prompt."""
        service.check_prompt(body.prompt, body.count)
        try:
            job = GenerateJob(
                service.model,
                body.prompt,
                length=body.length,
                count=body.count,
                decoding=body.decoding,
                seed=body.seed,
            )
        except SequenceTooLong as error:
            raise Refusal(413, str(error)) from error
        except (UsageError, InputError) as error:
            raise Refusal(422, str(error)) from error
        return await service.generate(request, job, body.timeout_s, per_base=body.per_base, stream=body.stream)

    path = "/v1/generate"
    app.add_api_route(
        path,
        generate,
        methods=["POST"],
        response_model=schemas.GenerateAnswer,
        responses=_refusals(*_REFUSALS) | {200: {"content": {"text/event-stream": _EVENTS}}},
    )
    return frozenset({path})


def _routes_of_state(app: FastAPI, service: Service) -> None:
    async def models() -> schemas.Models:
        """The model, its adapters, and what a request may ask for."""
        model = schemas.Model.model_validate(service.model.description)
        return schemas.Models(models=[model], limits=service.limits)

    async def health() -> schemas.Status:
        """Whether the process and its model run."""
        service.check_health()
        return schemas.Status(status="ok")

    async def ready() -> schemas.Status:
        """Whether new work is taken on."""
        service.check_ready()
        return schemas.Status(status="ready")

    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type=service.metrics.KIND)

    for path, endpoint, statuses in (
        ("/v1/models", models, (401,)),
        ("/health", health, (503,)),
        ("/ready", ready, (401, 503)),
    ):
        app.add_api_route(path, endpoint, methods=["GET"], responses=_refusals(*statuses))
    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    app.add_api_route(
        "/metrics", metrics, methods=["GET"], response_class=PlainTextResponse, responses=text | _refusals(401)
    )


def _routes_of_page(app: FastAPI) -> None:
    """Add the page: the files of its folder, read now, and no others whatever is asked for."""
    for file in (resources.files("hyenadna.serve") / "page").iterdir():
        kind = _KINDS.get(Path(file.name).suffix)
        if kind is not None:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            app.add_api_route(path, _file(file.read_bytes(), kind), methods=["GET"], include_in_schema=False)


def _file(content: bytes, kind: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def page() -> Response:
        return Response(content, headers={"content-type": kind})

    return page


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schemas.Error, "description": CODES[status].replace("_", " ")} for status in statuses}


class _Head:
    """Answers HEAD as GET, without the body."""

    def __init__(self, inner: Asgi) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "HEAD":
            return await self._inner(scope, receive, send)

        async def send_without_body(message: Message) -> None:
            await send(dict(message, body=b"") if message["type"] == "http.response.body" else message)

        await self._inner(dict(scope, method="GET"), receive, send_without_body)


class _StrictRequest(Request):
    """A request whose JSON says one thing only: no name twice in an object, no NaN."""

    async def json(self) -> Any:
        """The body, parsed."""
        try:
            return json.loads(
                (await self.body()).decode("utf-8"),
                object_pairs_hook=_object,
                parse_constant=_no_constant,
                parse_float=_number,
            )
        except RecursionError as error:
            raise HTTPException(400, "the body is nested too deeply") from error
        except ValueError as error:
            raise HTTPException(400, f"the body is not JSON: {error}") from error


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _number(text: str) -> float:
    # JSON makes no difference between 2 and 2.0
    value = float(text)
    return int(value) if value.is_integer() else value


def _no_constant(name: str) -> Any:
    raise ValueError(f"it has no {name}")


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return Response(refusal.body, refusal.status, refusal.headers, "application/json")


async def _defect(request: Request, error: Exception) -> Response:
    # it is raised again after this, and told in the log by the outermost layer
    return await _refused(request, Refusal(500, "the server failed; its log says where"))


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"
    messages = {
        404: "there is nothing at this address; /openapi.json tells what there is",
        405: f"this address takes {' and '.join(headers.get('Allow', '').split(', '))} alone",
    }
    refusal = Refusal(error.status_code, messages.get(error.status_code, error.detail), headers)
    return await _refused(request, refusal)


async def _not_valid(request: Request, error: Exception) -> Response:
    # what is wrong and where, but not what was sent
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part)[:64] for part in first["loc"][1:])
    if not place:
        return await _refused(request, Refusal(400, "the body must be a JSON object; /openapi.json has examples"))
    # pydantic's own words for these two are about Python
    said = {
        "model_attributes_type": "it must be an object",
        "extra_forbidden": "there is no such option here",
    }.get(first["type"], first["msg"])
    return await _refused(request, Refusal(422, f"{place}: {said}; /openapi.json has examples"))
