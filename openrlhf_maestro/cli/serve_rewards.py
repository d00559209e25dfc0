"""`maestro serve-rewards`: answers for reward components over HTTP until it is interrupted."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.config.secrets import read_secret
from openrlhf_maestro.config.serve import ServeConfig, ServeSection
from openrlhf_maestro.errors import ConfigError, RunError

if TYPE_CHECKING:
    from openrlhf_maestro.rewards.queries import QueryReader

# Requests under way get this long to be answered when the server is asked to end.
_LAST_REQUESTS_S = 10


def run(argv: Sequence[str]) -> int:
    """Serves until SIGINT or SIGTERM, then returns 0.

    Raises ConfigError where the token is not set or a component cannot be made, RunError where the port is taken.
    """
    config = load_config(ServeConfig, argv)
    token = _token(config.serve)
    listener = _listen(config.serve)
    for note in config.notes():
        print(f"note: {note}", file=sys.stderr)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    import uvicorn

    from openrlhf_maestro.rewards.panel import make_panel
    from openrlhf_maestro.rewards.server import make_app

    reader = _query_reader(config.serve)
    app = make_app(make_panel(config), config.serve, token, reader)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_LAST_REQUESTS_S,
        )
    )
    # uvicorn answers what is under way, then raises the signal again. Both end it alike, also where a shell has started
    # it in the background, with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    listener.listen()
    print(_announcement(config, listener), flush=True)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        print("stopped", flush=True)
    return 0


def _token(section: ServeSection) -> str | None:
    if not section.require_token:
        return None
    token = read_secret("serve.token_env", section.token_env)
    if token is None:
        raise ConfigError(
            f"the environment variable {section.token_env} is not set: it holds the token that clients have to show. "
            f"Make one with `export {section.token_env}=$(openssl rand -hex 32)` and give it to them the same way, or "
            "set serve.require_token to false for clients on this machine that cannot send one."
        )
    return token


def _query_reader(section: ServeSection) -> QueryReader | None:
    if section.policy_tokenizer is None:
        return None
    from transformers import AutoTokenizer

    from openrlhf_maestro.rewards.queries import QueryReader

    try:
        tokenizer = AutoTokenizer.from_pretrained(section.policy_tokenizer, trust_remote_code=section.trust_remote_code)
        return QueryReader(tokenizer)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"serve.policy_tokenizer: {section.policy_tokenizer} cannot be loaded: {reason}") from error


def _listen(section: ServeSection) -> socket.socket:
    """A socket of the address, bound before anything is loaded."""
    try:
        family = socket.getaddrinfo(section.host, section.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((section.host, section.port))
    except OSError as error:
        raise RunError(
            f"serve.host {section.host}, serve.port {section.port}: cannot listen there: {error.strerror}. Is another "
            "server running? --serve.port 0 takes a free port."
        ) from error
    return listener


def _announcement(config: ServeConfig, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    paths = ["/score", *(["/get_reward"] if config.serve.policy_tokenizer is not None else [])]
    names = ", ".join(component.label for component in config.rewards.components)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    access = "with the bearer token" if config.serve.require_token else "without a token"
    return f"serving {names} at {' and '.join(url + path for path in paths)}, {access}; Ctrl-C ends it"
