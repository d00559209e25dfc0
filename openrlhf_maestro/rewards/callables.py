"""Components that are a Python function of the user's: found, checked and called.

A function names the arguments it wants, and is called once for the responses to one prompt. One that names `queries`,
`prompts` and `labels` is OpenRLHF's, and is called as OpenRLHF 0.11.2 does: once a response, with lists of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from numbers import Real
from typing import Any

from openrlhf_maestro.config.components import CallableComponent
from openrlhf_maestro.errors import ConfigError, RunError
from openrlhf_maestro.rewards.groups import Group, Missing, Score
from openrlhf_maestro.rewards.service import excerpt
from openrlhf_maestro.rewards.user_code import described, load_function, nearest

# What a function may ask for by name: a list of G each.
ARGUMENTS: Mapping[str, Callable[[Group], list[Any]]] = {
    "prompts": lambda group: [group.prompt] * len(group),
    "responses": lambda group: list(group.responses),
    "references": lambda group: [group.reference] * len(group),
    "token_ids": lambda group: [list(ids) for ids in group.token_ids],
    "metadata": lambda group: [dict(group.metadata) for _ in group.responses],
    "datasources": lambda group: [group.datasource] * len(group),
    "messages": lambda group: [[dict(message) for message in group.messages] for _ in group.responses],
    "truncated": lambda group: list(group.truncated),
}
# OpenRLHF's `reward_func(queries, prompts, labels)`: rendered prompt + response, rendered prompt, reference or "".
OPENRLHF: Mapping[str, Callable[[Group], list[Any]]] = {
    "queries": lambda group: list(group.queries),
    "prompts": lambda group: [group.rendered_prompt] * len(group),
    "labels": lambda group: [group.reference or ""] * len(group),
}
# Calls of a plain function at a time: as many threads as asyncio's own pool has.
MAX_THREADS = min(32, (os.cpu_count() or 1) + 4)


class CallableScorer:
    """A function of the user's as a GroupScorer.

    A plain function runs in a thread, a coroutine function in the loop. A call that takes longer than `timeout_s` has
    no value; its thread cannot be ended and is left alone.
    """

    def __init__(self, section: CallableComponent) -> None:
        """Raises ConfigError where there is no such function, its file cannot be imported, or its parameters are
        not those of `ARGUMENTS` or `OPENRLHF`."""
        self._section = section
        where = f"reward component {section.label}: "
        self._function = load_function(section.function, where)
        self._arguments = _arguments(self._function, f"{where}{section.function}")
        self._in_thread = not _is_async(self._function)
        self._threads = asyncio.Semaphore(MAX_THREADS)

    async def score(self, group: Group) -> list[Score]:
        arguments = {name: get(group) for name, get in self._arguments.items()}
        if self._arguments is OPENRLHF:
            rows = [{name: [values[i]] for name, values in arguments.items()} for i in range(len(group))]
            return list(await asyncio.gather(*(self._openrlhf_score(row) for row in rows)))
        returned = await self._call(arguments)
        if isinstance(returned, Missing):
            return [returned] * len(group)
        return self._scores(returned, len(group))

    async def close(self) -> None:
        """Nothing is held."""

    async def _openrlhf_score(self, arguments: Mapping[str, Any]) -> Score:
        """The reward of one response: `rewards` of a dict, or what is returned itself; one number in either."""
        returned = await self._call(arguments)
        if isinstance(returned, Missing):
            return returned
        if isinstance(returned, Mapping) and "rewards" not in returned:
            raise self._wrong(f"a dict without `rewards`: {excerpt(repr(returned))}")
        value = _plain(returned["rewards"] if isinstance(returned, Mapping) else returned)
        while isinstance(value, list | tuple) and len(value) == 1:
            value = _plain(value[0])
        return self._score(value, "")

    async def _call(self, arguments: Mapping[str, Any]) -> Any:
        """What the function returns, or Missing after `timeout_s` of running."""
        async with self._threads if self._in_thread else contextlib.nullcontext():
            try:
                return await asyncio.wait_for(self._returned(arguments), self._section.timeout_s)
            except asyncio.TimeoutError:
                return Missing(f"no result within {self._section.timeout_s:g} s")

    async def _returned(self, arguments: Mapping[str, Any]) -> Any:
        def call() -> Any:
            with self._failures_explained():
                return self._function(**arguments)

        returned = await _in_daemon_thread(call) if self._in_thread else call()
        if inspect.isawaitable(returned):
            with self._failures_explained():
                return await returned
        return returned

    @contextlib.contextmanager
    def _failures_explained(self) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # whatever a user's function raises stops the run
            raise self._error(f"raised {described(error)}.") from error

    def _scores(self, returned: Any, size: int) -> list[Score]:
        values = _plain(returned)
        if not isinstance(values, list | tuple):
            raise self._wrong(_typed(returned))
        if len(values) != size:
            raise self._wrong(f"{len(values)} values for {size} responses: {excerpt(repr(values))}")
        return [self._score(_plain(value), f" for response {index}") for index, value in enumerate(values)]

    def _score(self, value: Any, which: str) -> Score:
        if value is None:
            return Missing("returned None")
        if not isinstance(value, Real):
            raise self._wrong(f"{_typed(value)}{which}, which is no number")
        number = float(value)
        return Missing(f"returned {number}") if math.isnan(number) or number == math.inf else number

    def _wrong(self, what: str) -> RunError:
        form = "one number or None" if self._arguments is OPENRLHF else "a list with one number or None a response"
        return self._error(f"returned {what}. It should return {form}.")

    def _error(self, what: str) -> RunError:
        where = f"reward component {self._section.label}: {self._section.function}"
        return RunError(f"{where} {what} Mend it and continue with --run.resume auto.")


def _arguments(function: Callable[..., Any], where: str) -> Mapping[str, Callable[[Group], list[Any]]]:
    """What `function` is called with, from its parameters. Raises ConfigError."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        raise ConfigError(f"{where} has no signature that can be read. Wrap it in a function of your own.") from None
    named = {parameter.name: parameter for parameter in parameters if parameter.kind not in _STARRED}
    known = OPENRLHF if named.keys() >= OPENRLHF.keys() else ARGUMENTS
    there = f"There are {', '.join(ARGUMENTS)}, or together {', '.join(OPENRLHF)} as in OpenRLHF."
    for name, parameter in named.items():
        if parameter.default is not parameter.empty:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(f"{where}: its parameter `{name}` is positional-only, but it is called by name.")
        if name not in known:
            raise ConfigError(f"{where} asks for `{name}`, which there is not.{nearest(name, known)} {there}")
    if known is OPENRLHF:
        return OPENRLHF
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return ARGUMENTS
    callable_by_name = [name for name, parameter in named.items() if parameter.kind is not parameter.POSITIONAL_ONLY]
    chosen = {name: ARGUMENTS[name] for name in callable_by_name if name in ARGUMENTS}
    if not chosen:
        raise ConfigError(f"{where} asks for nothing that it could score. {there}")
    return chosen


_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists, their scalars as Python's numbers; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _typed(value: Any) -> str:
    return f"{excerpt(repr(value))} ({type(value).__name__})"


async def _in_daemon_thread(call: Callable[[], Any]) -> Any:
    """What `call` returns. Unlike a pool's threads, one that never ends does not keep the process from ending."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="reward-function", daemon=True).start()
    return await asyncio.wrap_future(future)
