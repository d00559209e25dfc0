"""The `remote` component against a server that answers what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from openrlhf_maestro.config.components import RemoteComponent
from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.config.serve import ServeConfig
from openrlhf_maestro.errors import ConfigError, RunError
from openrlhf_maestro.rewards import service
from openrlhf_maestro.rewards.address import refuse_link_local
from openrlhf_maestro.rewards.components import Context, make_components
from openrlhf_maestro.rewards.groups import FAULT, Group, Missing, Score
from openrlhf_maestro.rewards.remote import RemoteScorer
from openrlhf_maestro.rewards.service import ServiceDown, TransientError

GROUP = Group(
    prompt="p",
    rendered_prompt="<p>",
    queries=["<p>x.", "<p>y."],
    responses=["x", "y"],
    token_ids=[[1, 0], [2, 0]],
    truncated=[False, False],
)
TOKEN = "a-token-of-32-characters-or-more"


@dataclass
class Reply:
    """What the server answers to one request."""

    body: Any = None  # anything but a text is written as JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


@dataclass
class Stub:
    """A server on a thread: gives its replies one after the other, the last one for ever, and keeps the requests."""

    url: str = ""
    replies: list[Reply] = field(default_factory=list)
    requests: list[tuple[dict[str, str], Any]] = field(default_factory=list)

    def section(self, **options: Any) -> RemoteComponent:
        return RemoteComponent(**({"url": self.url, "name": "a", "retry_s": 0, "timeout_s": 5} | options))


def scores(rows: Any, *components: str) -> dict[str, Any]:
    return {"components": components or ["a"], "groups": [{"scores": rows, "reasons": {}}]}


@pytest.fixture
def stub() -> Iterator[Stub]:
    found = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            reply = found.replies.pop(0) if len(found.replies) > 1 else found.replies[0]
            time.sleep(reply.delay_s)
            text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_arguments: Any) -> None:
            """Not to stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}/score"
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FIRST_WAIT_S", 0.01)
    monkeypatch.delenv("MAESTRO_REWARD_TOKEN", raising=False)


def ask(section: RemoteComponent, group: Group = GROUP) -> list[Score]:
    async def call() -> list[Score]:
        scorer = RemoteScorer(section)
        try:
            return list(await scorer.score(group))
        finally:
            await scorer.close()

    return asyncio.run(call())


def test_numbers_faults_and_missing_values(stub: Stub) -> None:
    stub.replies = [Reply(scores([[0.25], ["fault"]]))]
    assert ask(stub.section()) == [0.25, FAULT]
    stub.replies = [Reply(scores([[None], [-3]]) | {"groups": [{"scores": [[None], [-3]], "reasons": {"a": "down"}}]})]
    assert ask(stub.section()) == [Missing("down"), -3.0]


def test_the_request(stub: Stub) -> None:
    stub.replies = [Reply(scores([[1], [2]], "quality"))]
    ask(stub.section(component="quality"))
    ((headers, body),) = stub.requests
    assert headers["content-type"] == "application/json" and "authorization" not in headers
    assert body["components"] == ["quality"]
    assert body["groups"][0]["responses"] == ["x", "y"] and body["groups"][0]["token_ids"] == [[1, 0], [2, 0]]


def test_the_request_in_openrlhfs_protocol(stub: Stub) -> None:
    stub.replies = [Reply({"rewards": [0.5, 2], "scores": [9, 9], "extra_logs": {"dummy_scores": [9, 9]}})]
    assert ask(stub.section(protocol="openrlhf")) == [0.5, 2.0]
    assert stub.requests[0][1] == {"query": ["<p>x.", "<p>y."], "prompts": ["<p>", "<p>"], "labels": ["", ""]}


def test_the_token_comes_from_the_environment(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.replies = [Reply(scores([[1], [2]]))]
    monkeypatch.setenv("MY_TOKEN", f" {TOKEN}\n")
    ask(stub.section(token_env="MY_TOKEN"))
    assert stub.requests[0][0]["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("odd", ["\n", "\x7f", "é", "\udcff"])
def test_a_token_that_cannot_stand_in_a_header_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    monkeypatch.setenv("MAESTRO_REWARD_TOKEN", f"{TOKEN}{odd}{TOKEN}")
    with pytest.raises(ConfigError, match=r"component a: .*MAESTRO_REWARD_TOKEN holds something else") as raised:
        RemoteScorer(RemoteComponent(url="http://127.0.0.1:1/score", name="a"))
    assert TOKEN not in str(raised.value)


def test_no_proxy_stands_between(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    stub.replies = [Reply(scores([[1], [2]]))]
    assert ask(stub.section()) == [1.0, 2.0]


# ── one request for several components ──


def test_components_of_one_server_share_a_request(stub: Stub) -> None:
    stub.replies = [Reply(scores([[1, 2], [3, 4]], "a", "quality"))]
    sections = [stub.section(), stub.section(name="b", component="quality"), stub.section(name="c", component="a")]
    components = make_components(sections, Context(max_new_tokens=1))

    async def call() -> list[Any]:
        found = []
        for group in (GROUP, dataclasses.replace(GROUP)):
            found.append(await asyncio.gather(*(component.scorer.score(group) for component in components)))  # type: ignore[arg-type]
        for component in components:
            await component.scorer.close()  # type: ignore[union-attr]
        return found

    assert asyncio.run(call()) == [[[1, 3], [2, 4], [1, 3]]] * 2
    assert len(stub.requests) == 2  # for two times three scores
    assert all(body["components"] == ["a", "quality"] for _, body in stub.requests)


@pytest.mark.parametrize("status", [200, 400])
def test_a_group_that_only_some_ask_for_is_not_kept(stub: Stub, status: int) -> None:
    """A client of a server that serves two need not ask for both."""
    stub.replies = [Reply(scores([[1, 2], [3, 4]], "a", "b"), status)]
    endpoints: dict[Any, Any] = {}
    first, second = (RemoteScorer(stub.section(name=name), endpoints) for name in "ab")
    assert len(endpoints) == 1

    async def call() -> list[weakref.ref[Group]]:
        seen = []
        for _ in range(3):
            group = dataclasses.replace(GROUP)
            seen.append(weakref.ref(group))
            with contextlib.suppress(RunError):
                await first.score(group)
        await asyncio.sleep(0)
        del group
        gc.collect()
        alive = [reference() for reference in seen]
        await second.close()
        return alive

    assert asyncio.run(call()) == [None] * 3
    assert len(stub.requests) == 3


@pytest.mark.parametrize(
    "other", [{"timeout_s": 7}, {"token_env": "OTHER"}, {"protocol": "openrlhf", "component": None}]
)
def test_what_differs_is_not_shared(stub: Stub, other: dict[str, Any]) -> None:
    stub.replies = [Reply(scores([[1], [2]]) | {"rewards": [3, 4]})]
    sections = [stub.section(), stub.section(**({"name": "b", "component": "a"} | other))]
    components = make_components(sections, Context(max_new_tokens=1))

    async def call() -> None:
        await asyncio.gather(*(component.scorer.score(GROUP) for component in components))  # type: ignore[arg-type]
        for component in components:
            await component.scorer.close()  # type: ignore[union-attr]

    asyncio.run(call())
    assert len(stub.requests) == 2


def test_one_that_stops_waiting_takes_nothing_from_the_others(stub: Stub) -> None:
    stub.replies = [Reply(scores([[1, 2], [3, 4]], "a", "b"), delay_s=0.2)]
    endpoints: dict[Any, Any] = {}
    first, second = (RemoteScorer(stub.section(name=name), endpoints) for name in "ab")

    async def call() -> list[Score]:
        hasty = asyncio.create_task(first.score(GROUP))
        patient = asyncio.create_task(second.score(GROUP))
        await asyncio.sleep(0.05)
        hasty.cancel()
        found = list(await patient)
        await first.close()
        await second.close()
        return found

    assert asyncio.run(call()) == [2.0, 4.0]


# ── failures that may pass ──


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_a_status_that_may_pass_is_retried(stub: Stub, status: int) -> None:
    stub.replies = [Reply("busy", status), Reply("busy", status), Reply(scores([[1], [2]]))]
    assert ask(stub.section(retry_s=10)) == [1.0, 2.0]
    assert len(stub.requests) == 3


def test_what_does_not_pass_in_time_is_missing(stub: Stub) -> None:
    stub.replies = [Reply({"detail": "overloaded"}, 503)]
    first, second = ask(stub.section(retry_s=2))
    assert isinstance(first, Missing) and first == second
    assert first.reason == f'{stub.url} answers with status 503: {{"detail": "overloaded"}}'
    assert len(stub.requests) > 1


def test_a_server_that_takes_too_long_is_missing(stub: Stub) -> None:
    stub.replies = [Reply(scores([[1], [2]]), delay_s=1)]
    assert ask(stub.section(timeout_s=0.1)) == [Missing("no answer within 0.1 s")] * 2


def test_a_server_that_is_not_there_is_missing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (first, _) = ask(RemoteComponent(url=f"http://127.0.0.1:{port}/score", retry_s=0))
    assert isinstance(first, Missing) and first.reason.startswith(f"http://127.0.0.1:{port}/score cannot be reached: ")


def test_the_circuit_opens(stub: Stub) -> None:
    stub.replies = [Reply("down", 503)]

    async def call() -> None:
        scorer = RemoteScorer(stub.section(max_failures=2))
        assert isinstance((await scorer.score(GROUP))[0], Missing)
        for _ in range(2):
            with pytest.raises(ServiceDown, match="reward component a: 2 calls in a row failed"):
                await scorer.score(GROUP)
        await scorer.close()

    asyncio.run(call())
    assert len(stub.requests) == 2


# ── failures that stop the run ──


@pytest.mark.parametrize(
    ("reply", "fragments"),
    [
        (Reply({"detail": "no such component"}, 422), ["status 422", "no such component"]),
        (Reply("nothing here", 404), ["status 404: nothing here"]),
        (Reply("wrong token", 401), ["status 401", "MAESTRO_REWARD_TOKEN"]),
        (Reply("", 302, {"location": "http://127.0.0.1:1/"}), ["redirects the request"]),
        (Reply("", 307, {"location": "http://169.254.169.254/"}), ["redirects the request"]),
        (Reply("<html>welcome</html>"), ["not JSON", "<html>welcome</html>"]),
        (Reply(scores([[1]])), ["1 scores where 2 were expected", '"groups"']),
        (Reply(scores([["high"], [1]])), ['"high" is not a number']),
        (Reply(scores([[1], [2]], "b")), ["its components are not a"]),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else "",
)
def test_what_no_retry_mends_stops_at_once(stub: Stub, reply: Reply, fragments: list[str]) -> None:
    stub.replies = [reply]
    with pytest.raises(RunError) as caught:
        ask(stub.section(retry_s=60))
    message = str(caught.value)
    assert message.startswith(f"reward component a: {stub.url} ")
    assert all(fragment in message for fragment in fragments), message
    assert len(stub.requests) == 1 and not isinstance(caught.value, ServiceDown)


def test_a_long_answer_is_shown_in_excerpt_and_the_token_never(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAESTRO_REWARD_TOKEN", TOKEN)
    stub.replies = [Reply("x" * 100_000, 400)]
    with pytest.raises(RunError) as caught:
        ask(stub.section())
    assert len(str(caught.value)) < 400 and TOKEN not in str(caught.value)


def test_a_nan_is_missing(stub: Stub) -> None:
    stub.replies = [Reply('{"rewards": [NaN, 1]}')]
    assert ask(stub.section(protocol="openrlhf")) == [Missing("its reward is nan"), 1.0]


# ── addresses ──


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"url": "ftp://host/score"}, "http:// or https://"),
        ({"url": "file:///etc/passwd"}, "http:// or https://"),
        ({"url": "host:8765/score"}, "http:// or https://"),
        ({"url": "http://me:secret@host/score"}, "environment variables"),
        ({"url": "ftp://me:secret@host/score"}, "environment variables"),
        ({"url": "me:secret@host/score"}, "http:// or https://"),
        ({"url": "http://host/score?api-key=secret"}, "environment variables"),
        ({"url": "host:80/score?api-key=secret"}, "environment variables"),
        ({"url": "http://host/score#secret"}, "environment variables"),
        ({"url": "http://host/sc\nore"}, "printable ASCII"),
        ({"url": "http://host/score\x00"}, "printable ASCII"),
        ({"url": " http://host/score"}, "printable ASCII"),
        ({"url": "http://fa\u00df.example/score"}, "xn--"),
        ({"url": "http://a..b/score"}, "labels"),
        ({"url": "http://./score"}, "labels"),
        ({"url": "http://a%2eb/score"}, "labels"),
        ({"url": f"http://{'a' * 64}.example/score"}, "labels"),
        ({"url": "http://999.1.1.1/score"}, "no IP address"),
        ({"url": "http://010.0.0.1/score"}, "no IP address"),
        ({"url": "http://[::zz]/score"}, "IPv"),
        ({"url": "http://host:x/score"}, "Port"),
        ({"url": "http://169.254.169.254/latest"}, "link-local"),
        ({"url": "http://host/get_reward", "protocol": "openrlhf", "component": "b"}, "component has no meaning"),
    ],
)
def test_what_the_configuration_refuses(options: dict[str, Any], fragment: str) -> None:
    file_option = json.dumps([{"kind": "remote"} | options])
    with pytest.raises(ConfigError) as caught:
        load_config(ServeConfig, ["--rewards.components", file_option])
    assert fragment in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["a", "a.example", "a.example.", "my_host", "10.0.0.1", "[::1]", "xn--fa-hia.example"])
def test_addresses_that_are_allowed(host: str) -> None:
    url = f"https://{host}:8765/a/b%20c"
    assert RemoteComponent(url=url).url == url


@given(st.text(st.characters(max_codepoint=0x17F)))
def test_an_address_that_is_allowed_is_the_same_to_the_client_and_the_check(text: str) -> None:
    url = f"http://{text}/score"
    try:
        RemoteComponent(url=url)
    except ValidationError:
        return
    asked, checked = httpx.URL(url), urlsplit(url)
    assert (asked.host, asked.port, asked.userinfo) == (checked.hostname, checked.port, b"")


def resolving_to(*addresses: str) -> Callable[..., Any]:
    async def getaddrinfo(*_arguments: Any, **_options: Any) -> list[Any]:
        return [(0, 0, 0, "", (address, 80)) for address in addresses]

    return getaddrinfo


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254"]
)
def test_names_that_lead_to_a_link_local_address_are_refused(
    address: str, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolving_to("127.0.0.1", address))
    with pytest.raises(RunError, match="a link-local address, which is refused"):
        ask(stub.section())
    assert stub.requests == []


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "fd00::1", "8.8.8.8"])
def test_loopback_private_and_public_addresses_are_allowed(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By not raising."""
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolving_to(address))
    asyncio.run(refuse_link_local("a", "http://scorer:80/score"))


@pytest.mark.parametrize("host", ["2852039166", "0xa9fea9fe", "169.254.43518"])
def test_other_spellings_of_a_link_local_address_are_refused(host: str) -> None:
    with pytest.raises(RunError, match=r"leads to 169\.254\.169\.254"):
        asyncio.run(refuse_link_local("a", f"http://{host}/latest"))


def test_a_name_that_cannot_be_resolved_may_be_there_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_arguments: Any, **_options: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", fails)
    with pytest.raises(TransientError, match="http://nowhere/score: the host cannot be resolved: Name or service"):
        asyncio.run(refuse_link_local("a", "http://nowhere/score"))


@pytest.mark.parametrize("host", ["a..b", "a" * 64])
def test_a_host_that_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(RunError, match=r"reward component a: http://a.* no name that can be resolved"):
        asyncio.run(refuse_link_local("reward component a", f"http://{host}/score"))
