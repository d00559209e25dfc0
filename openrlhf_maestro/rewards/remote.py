"""Component `remote`: scores over HTTP, from `maestro serve-rewards` or a server of OpenRLHF's protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import httpx

from openrlhf_maestro.config.components import RemoteComponent, ServiceOptions
from openrlhf_maestro.config.secrets import read_secret
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards.address import client_options, refuse_link_local
from openrlhf_maestro.rewards.groups import Group, GroupScorer, Missing, Score
from openrlhf_maestro.rewards.protocol import (
    ProtocolError,
    read_rewards,
    read_scores,
    reward_request,
    score_request,
)
from openrlhf_maestro.rewards.service import RETRIED_STATUS, Service, TransientError, excerpt

Columns = Mapping[str, Sequence[Score]]


class RemoteScorer(GroupScorer):
    """One component of a server.

    Those with the same address, protocol, token and limits share one request a group where they are asked together, if
    they were made with the same `endpoints`, the scorers' common register.
    """

    def __init__(self, section: RemoteComponent, endpoints: dict[Any, Endpoint] | None = None) -> None:
        """Connects to nothing yet.

        Raises:
            ConfigError: the token cannot stand in a header.
        """
        self._label = section.label
        limits = (getattr(section, name) for name in ServiceOptions.model_fields)
        key = (section.url, section.protocol, section.token_env, *limits)
        register = {} if endpoints is None else endpoints
        if key not in register:
            register[key] = Endpoint(section)
        self._endpoint = register[key]
        self._endpoint.join(section)

    async def score(self, group: Group) -> Sequence[Score]:
        """(G,) the server's scores; all missing where it could not be reached in time.

        Raises:
            RunError: the server refuses the request, redirects it, answers something else than the protocol says, or
                is at a link-local address; or it has been down for too long (ServiceDown).
        """
        return await self._endpoint.score(self._label, group)

    async def close(self) -> None:
        await self._endpoint.close()


class Endpoint:
    """A server, and the components that are asked of it."""

    def __init__(self, section: RemoteComponent) -> None:
        self._section = section
        self._token = read_secret(f"reward component {section.label}", section.token_env)
        self._wanted: dict[str, str] = {}  # the server's component by the label of ours
        self._service = Service("", section)
        self._requests: dict[int, asyncio.Task[Columns]] = {}  # under way, by the id of the group
        self._client: httpx.AsyncClient | None = None

    def join(self, section: RemoteComponent) -> None:
        """Ask for a further component from now on; before the first group."""
        self._wanted[section.label] = section.component or section.label
        self._service.name = ", ".join(self._wanted)

    async def score(self, label: str, group: Group) -> Sequence[Score]:
        """(G,) the scores of the component `label`; the first of all that ask for a group's makes the request."""
        request = self._requests.get(id(group))
        if request is None:
            request = self._requests[id(group)] = asyncio.create_task(self._ask(group))
            # It also keeps the group alive until then: another could take its id.
            request.add_done_callback(lambda _: self._requests.pop(id(group)))
        # One that stops waiting must not take the answer from the others.
        return (await asyncio.shield(request))[label]

    async def close(self) -> None:
        for request in self._requests.values():
            request.cancel()
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, group: Group) -> Columns:
        components = list(dict.fromkeys(self._wanted.values()))
        single = self._section.protocol == "openrlhf"
        body = reward_request(group) if single else score_request(group, components)
        text = await self._service.call(partial(self._post, body))
        if isinstance(text, Missing):
            return dict.fromkeys(self._wanted, [text] * len(group))
        try:
            if single:
                return dict.fromkeys(self._wanted, read_rewards(text, len(group)))
            columns = read_scores(text, components, len(group))
        except ProtocolError as error:
            raise self._error(f"gives an answer that cannot be used: {error}: {excerpt(text)}") from None
        return {label: columns[component] for label, component in self._wanted.items()}

    async def _post(self, body: bytes) -> str:
        """The text of the answer to one attempt. What may pass is a TransientError, the rest a RunError."""
        url = self._section.url
        await refuse_link_local(f"reward component {self._service.name}", url)
        if self._client is None:
            self._client = self._connect()
        try:
            response = await self._client.post(url, content=body)
        except httpx.RequestError as error:
            raise TransientError(f"{url} cannot be reached: {error or type(error).__name__}") from error
        if response.is_success:
            return response.text
        answer = f"answers with status {response.status_code}: {excerpt(response.text)}"
        if response.status_code in RETRIED_STATUS:
            raise TransientError(f"{url} {answer}")
        if response.is_redirect:
            raise self._error("redirects the request, which is not followed. Give the address it leads to.")
        if response.status_code in (401, 403):
            answer += f". The bearer token is read from the environment variable {self._section.token_env}."
        raise self._error(answer)

    def _connect(self) -> httpx.AsyncClient:
        headers = {"content-type": "application/json"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        return httpx.AsyncClient(
            headers=headers,
            timeout=None,  # the service's part
            limits=httpx.Limits(max_connections=self._section.concurrency),
            **client_options(),
        )

    def _error(self, what: str) -> RunError:
        return RunError(f"reward component {self._service.name}: {self._section.url} {what}")
