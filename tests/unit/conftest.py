"""A judge of the tests' own: a small OpenAI-compatible server on a real socket, that answers as it is told."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from openrlhf_maestro.rewards import service

JUDGE_KEY_VARIABLE = "EVALUATION_JUDGE_KEY"


@dataclass
class Judge:
    """`answer(request)` gives a reply, or a status to fail with; `requests` are those it was asked, in their order."""

    url: str
    answer: Callable[[dict[str, Any]], str | int]
    requests: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = "stop"

    def shown(self, request: dict[str, Any], part: str) -> str:
        """What stands between the lines of a part."""
        text = request["messages"][1]["content"]
        found = re.search(rf"\[{part} (\w{{16}})\]\n(.*)\n\[end of {part} \1\]", text, re.DOTALL)
        assert found, text
        return found.group(2)


@pytest.fixture(scope="session")
def judge_server() -> Iterator[Judge]:
    """One server for all tests."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        found.requests.append(body)
        reply = found.answer(body)
        if isinstance(reply, int):
            return JSONResponse({"error": f"status {reply} on purpose"}, status_code=reply)
        message = {"role": "assistant", "content": reply}
        body = {"choices": [{"message": message, "finish_reason": found.finish_reason}]}
        return Response(json.dumps(body), media_type="application/json")  # a lone surrogate too, escaped

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    found = Judge(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", lambda _: "True")
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield found
    server.should_exit = True
    thread.join()


@pytest.fixture
def judge(judge_server: Judge, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Says True until it is told otherwise; its key is set, and a failed call is repeated soon."""
    monkeypatch.setenv(JUDGE_KEY_VARIABLE, "key-of-the-test")
    monkeypatch.setattr(service, "FIRST_WAIT_S", 0.01)
    judge_server.requests.clear()
    judge_server.answer = lambda _: "True"
    judge_server.finish_reason = "stop"
    return judge_server
