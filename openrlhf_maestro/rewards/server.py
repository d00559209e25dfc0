"""The reward server behind `maestro serve-rewards`: a panel of components over HTTP, in two protocols.

Nothing of what a client sends is logged: a request that is refused is one line with its path and status.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from torch import Tensor

from openrlhf_maestro.config.serve import ServeSection
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards.groups import Group
from openrlhf_maestro.rewards.panel import Panel
from openrlhf_maestro.rewards.protocol import RewardRequest, ScoreRequest, group_answer
from openrlhf_maestro.rewards.service import ServiceDown

BodyT = TypeVar("BodyT", bound=BaseModel)
# (query, rendered prompt, label) of one response -> a group of one; ValueError where it cannot be told apart.
ReadQuery = Callable[[str, str, Any], Group]

_log = logging.getLogger(__name__)


def make_app(panel: Panel, section: ServeSection, token: str | None, read_query: ReadQuery | None = None) -> FastAPI:
    """The application: GET /health, POST /score, and POST /get_reward where there is a `read_query`.

    Args:
        section: the limits on a request.
        token: the bearer token that requests must show; None: none.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await panel.close()

    # No pages that describe the interface: they would be open to everyone.
    app = FastAPI(openapi_url=None, lifespan=lifespan)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RunError, _scorer_failed)
    app.add_exception_handler(Exception, _bug)
    guarded = [Depends(_bearer(token))]

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.post("/score", dependencies=guarded)
    async def score(request: Request) -> JSONResponse:
        return JSONResponse(await _score(panel, await _read(request, ScoreRequest, section), section))

    @app.post("/get_reward", dependencies=guarded)
    async def get_reward(request: Request) -> JSONResponse:
        if read_query is None:
            raise HTTPException(404, "OpenRLHF's protocol is not served: serve.policy_tokenizer is not set")
        return JSONResponse(await _rewards(panel, await _read(request, RewardRequest, section), section, read_query))

    return app


async def _score(panel: Panel, asked: ScoreRequest, section: ServeSection) -> dict[str, Any]:
    names = list(panel.components) if asked.components is None else list(dict.fromkeys(asked.components))
    unknown = [name for name in names if name not in panel.components]
    if unknown or not names:
        wrong = f"no component {', '.join(unknown)}" if unknown else "nothing asked for"
        raise HTTPException(422, f"{wrong}; there are {', '.join(panel.components)}")
    _check_batch(sum(len(body.responses) for body in asked.groups), section)
    counting = panel.counting_tokens.intersection(names)
    if counting and any(body.token_ids is None for body in asked.groups):
        raise HTTPException(422, f"{', '.join(sorted(counting))} counts tokens: give every group its token_ids")
    groups = await asyncio.gather(*(panel.scores(body.group(), names) for body in asked.groups))
    return {"components": names, "groups": [group_answer(columns) for columns in groups]}


async def _rewards(panel: Panel, asked: RewardRequest, section: ServeSection, read_query: ReadQuery) -> dict[str, Any]:
    """One reward a response; OpenRLHF logs what is in `extra_logs`, numbers only: a missing one is 0 and counted."""
    _check_batch(len(asked.query), section)
    try:
        groups = [read_query(*row) for row in zip(asked.query, asked.prompts, asked.labels, strict=True)]
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    scores = await asyncio.gather(*(panel.scores(group, panel.components) for group in groups))
    rewards, values = panel.single_reward(
        {name: [score for columns in scores for score in columns[name]] for name in panel.components}
    )
    if rewards.isnan().any():
        raise HTTPException(503, "no component has a value for a response")
    logs: dict[str, Tensor] = {}
    for name, column in zip(panel.components, values.unbind(-1), strict=True):
        logs |= {name: column.nan_to_num(0.0), f"{name}_missing": column.isnan().double()}
    return {
        "rewards": rewards.tolist(),
        "scores": rewards.tolist(),
        "extra_logs": {name: column.tolist() for name, column in logs.items()},
    }


# ── requests ──


def _bearer(token: str | None) -> Callable[[Request], Awaitable[None]]:
    async def check(request: Request) -> None:
        if token is None:
            return
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        # Compared in constant time, so that the time does not tell how much of a guess was right.
        if not hmac.compare_digest(shown.strip().encode(), token.encode()) or scheme.lower() != "bearer":
            raise HTTPException(401, "the bearer token is absent or wrong", headers={"WWW-Authenticate": "Bearer"})

    return check


async def _read(request: Request, body_type: type[BodyT], section: ServeSection) -> BodyT:
    """The body of a request, read no further than the limit."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "the content-type has to be application/json")
    limit = int(section.max_body_mib * 2**20)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise HTTPException(413, f"the body is larger than serve.max_body_mib ({section.max_body_mib:g} MiB)")
    try:
        return body_type.model_validate_json(bytes(body))
    except ValidationError as error:
        raise HTTPException(422, _problem(error)) from None


def _problem(error: ValidationError) -> str:
    """The first thing that is wrong with a body, and where; nothing of what is in it."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def _check_batch(responses: int, section: ServeSection) -> None:
    if responses > section.max_responses:
        raise HTTPException(
            413, f"the request has {responses} responses, more than serve.max_responses ({section.max_responses})"
        )


# ── failures ──


async def _refused(request: Request, error: Any) -> JSONResponse:
    _log.warning("%s %s: %d", request.method, request.url.path, error.status_code)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _scorer_failed(request: Request, error: Exception) -> JSONResponse:
    """503 may pass, 424 (failed dependency) will not; the message may quote a text and is for the client alone."""
    status = 503 if isinstance(error, ServiceDown) else 424
    _log.warning("%s %s: %d, a scorer failed", request.method, request.url.path, status)
    return JSONResponse({"detail": str(error)}, status)


async def _bug(_request: Request, error: Exception) -> JSONResponse:
    """The traceback goes to the log."""
    return JSONResponse({"detail": f"internal error: {type(error).__name__}"}, 500)
