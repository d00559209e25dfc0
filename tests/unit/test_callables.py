"""Functions of the user's: every form of signature and of result, and what is said where one cannot be used."""

from __future__ import annotations

import asyncio
import math
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openrlhf_maestro.config.components import CallableComponent, FormatComponent, PerplexityComponent
from openrlhf_maestro.errors import ConfigError, RunError
from openrlhf_maestro.rewards import Group, Missing, Score, try_component
from openrlhf_maestro.rewards.callables import ARGUMENTS, CallableScorer

INF = math.inf
MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"})
GROUP = Group(
    prompt="2 + 2?",
    rendered_prompt="<user>2 + 2?<bot>",
    queries=["<user>2 + 2?<bot>4<end>", "<user>2 + 2?<bot>five"],
    responses=["4", "five"],
    token_ids=[[4, 9], [5]],
    truncated=[False, True],
    reference="4",
    datasource="sums",
    messages=MESSAGES,
    metadata={"level": 1},
)
# What a function gets by each name, written out.
GIVEN = {
    "prompts": ["2 + 2?", "2 + 2?"],
    "responses": ["4", "five"],
    "references": ["4", "4"],
    "token_ids": [[4, 9], [5]],
    "metadata": [{"level": 1}, {"level": 1}],
    "datasources": ["sums", "sums"],
    "messages": [list(MESSAGES), list(MESSAGES)],
    "truncated": [False, True],
}


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def scorer(code: str, function: str = "mine.py:score", **options: object) -> CallableScorer:
    Path("mine.py").write_text(textwrap.dedent(code))
    return CallableScorer(CallableComponent(function=function, name="style", **options))


def scores(made: CallableScorer, group: Group = GROUP) -> list[Score]:
    return asyncio.run(made.score(group))


def refused(code: str, function: str = "mine.py:score") -> str:
    with pytest.raises(ConfigError) as caught:
        scorer(code, function)
    message = str(caught.value)
    assert message.startswith("reward component style: ")
    return message


def failure(code: str, **options: object) -> str:
    made = scorer(code, **options)
    with pytest.raises(RunError) as caught:
        scores(made)
    message = str(caught.value)
    assert message.startswith("reward component style: mine.py:score ")
    assert message.endswith("Mend it and continue with --run.resume auto.")
    return message


# ── what a function is given ──


def test_every_argument_is_written_out_here() -> None:
    assert GIVEN.keys() == ARGUMENTS.keys()


@pytest.mark.parametrize("name", GIVEN)
def test_an_argument_is_a_list_with_one_item_a_response(name: str) -> None:
    made = scorer(f"def score({name}):\n    assert {name} == {GIVEN[name]!r}, {name}\n    return [1, 0]")
    assert scores(made) == [1.0, 0.0]


def test_a_function_without_a_reference_gets_none() -> None:
    bare = Group("p", "p", ["pr"], ["r"], [[1]], [False])
    made = scorer(
        "def score(references, metadata, messages):\n"
        "    return [(references, metadata, messages) == ([None], [{}], [[]])]"
    )
    assert scores(made, bare) == [1.0]


FORMS = {
    "in another order": "def score(references, responses): return [r == f for r, f in zip(responses, references)]",
    "by keyword only": "def score(*, responses): return [r == '4' for r in responses]",
    "with defaults of its own": "def score(responses, wanted='4'): return [r == wanted for r in responses]",
    "with defaults that are given": """
        def score(responses=(), references=()): return [r == f for r, f in zip(responses, references)]
        """,
    "all by **kwargs": "def score(**given): return [len(given) == 8 and r == '4' for r in given['responses']]",
    "one and the others": "def score(responses, **given): return [len(given) == 7 and r == '4' for r in responses]",
    "with *args, which stay empty": "def score(*rest, responses): return [not rest and r == '4' for r in responses]",
    "async": """
        import asyncio
        async def score(responses):
            await asyncio.sleep(0)
            return [r == '4' for r in responses]
        """,
    "that returns an awaitable": """
        async def later(responses): return [r == '4' for r in responses]
        def score(responses): return later(responses)
        """,
    "an object with __call__": """
        class Equal:
            def __init__(self, wanted): self.wanted = wanted
            def __call__(self, responses): return [r == self.wanted for r in responses]
        score = Equal('4')
        """,
    "an object with async __call__": """
        class Equal:
            async def __call__(self, responses): return [r == '4' for r in responses]
        score = Equal()
        """,
    "a method of an object": """
        class Equal:
            def check(self, responses): return [r == '4' for r in responses]
        score = Equal().check
        """,
    "a partial": """
        from functools import partial
        def equal(wanted, responses): return [r == wanted for r in responses]
        score = partial(equal, '4')
        """,
    "decorated": """
        import torch
        @torch.no_grad()
        def score(responses): return [r == '4' for r in responses]
        """,
    "a lambda": "score = lambda responses: [r == '4' for r in responses]",
}


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in FORMS.items()])
def test_forms_of_a_function(code: str) -> None:
    assert scores(scorer(code)) == [1.0, 0.0]


def test_what_a_function_does_to_its_arguments_stays_with_it() -> None:
    made = scorer(
        """
        def score(responses, metadata, messages, token_ids):
            responses.clear(), metadata[0].clear(), messages[0][0].clear(), token_ids[0].clear()
            return [metadata[1]["level"], len(messages[1][0])]
        """
    )
    assert scores(made) == [1.0, 2.0]
    assert scores(made) == [1.0, 2.0]


# ── what a function returns ──

RESULTS = {
    "floats": ("[0.25, -3]", [0.25, -3.0]),
    "a tuple": ("(1, 0)", [1.0, 0.0]),
    "bools": ("[True, False]", [1.0, 0.0]),
    "None": ("[None, 1.0]", [Missing("returned None"), 1.0]),
    "no number yet": ("[float('nan'), float('inf')]", [Missing("returned nan"), Missing("returned inf")]),
    "the response's fault": ("[float('-inf'), 0]", [-INF, 0.0]),
    "scalars of numpy": ("[np.float32(0.5), np.bool_(True)]", [0.5, 1.0]),
    "scalars of torch": ("[torch.tensor(0.5), torch.tensor(2)]", [0.5, 2.0]),
    "an array": ("np.array([1, 0])", [1.0, 0.0]),
    "a tensor with a gradient": ("torch.tensor([0.5, 0.25], requires_grad=True)", [0.5, 0.25]),
    "a tensor of half precision": ("torch.tensor([0.5, 0.25], dtype=torch.bfloat16)", [0.5, 0.25]),
    "a fraction": ("[Fraction(1, 4), 0]", [0.25, 0.0]),
}
IMPORTS = "import numpy as np, torch\nfrom fractions import Fraction\n"


@pytest.mark.parametrize(("result", "expected"), [pytest.param(*case, id=name) for name, case in RESULTS.items()])
def test_forms_of_a_result(result: str, expected: list[Score]) -> None:
    found = scores(scorer(f"{IMPORTS}def score(responses): return {result}"))
    assert found == expected
    assert all(type(value) in (float, Missing) for value in found)


WRONG_RESULTS = {
    "one too many": ("[1, 2, 3]", "returned 3 values for 2 responses: [1, 2, 3]"),
    "nothing": ("None", "returned None (NoneType)"),
    "one number": ("0.5", "returned 0.5 (float)"),
    "a text": ("'10'", "returned '10' (str)"),
    "a dict": ("{'a': 1, 'b': 2}", "returned {'a': 1, 'b': 2} (dict)"),
    "a generator": ("(1 for _ in responses)", "returned <generator"),
    "a number as a text": ("[1, '0.5']", "returned '0.5' (str) for response 1, which is no number"),
    "a list in it": ("[[1], 0]", "returned [1] (list) for response 0, which is no number"),
    "a complex number": ("[1j, 0]", "returned 1j (complex) for response 0, which is no number"),
    "a matrix": ("torch.zeros(2, 1)", "returned [0.0] (list) for response 0, which is no number"),
    "a tensor too long": ("torch.zeros(3)", "returned 3 values for 2 responses: [0.0, 0.0, 0.0]"),
}


@pytest.mark.parametrize(("result", "said"), [pytest.param(*case, id=name) for name, case in WRONG_RESULTS.items()])
def test_a_result_of_another_form_stops_the_run(result: str, said: str) -> None:
    message = failure(f"{IMPORTS}def score(responses): return {result}")
    assert said in message
    assert "It should return a list with one number or None a response." in message


# ── failures of a function ──

RAISING = {
    "itself": (
        "def score(responses):\n    x = 1\n    return [1 / 0]",
        "ZeroDivisionError: division by zero (mine.py:3)",
    ),
    "in a library": (
        "import json\ndef score(responses):\n    return json.loads('{')",
        "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1) (mine.py:3)",
    ),
    "async": ("async def score(responses):\n    raise ValueError('no number')", "ValueError: no number (mine.py:2)"),
    "in an awaitable": (
        "async def later():\n    raise KeyError('x')\ndef score(responses):\n    return later()",
        "KeyError: 'x' (mine.py:2)",
    ),
    "decorated": (
        "import torch\n@torch.no_grad()\ndef score(responses):\n    raise ValueError('torch')",
        "ValueError: torch (mine.py:4)",
    ),
    "no message": ("def score(responses):\n    raise ValueError", "raised ValueError (mine.py:2)"),
    # These two are swallowed by futures and threads where nobody takes care.
    "StopIteration": ("def score(responses):\n    return next(iter([]))", "StopIteration (mine.py:2)"),
    "exit": ("import sys\ndef score(responses):\n    sys.exit(3)", "SystemExit: 3 (mine.py:3)"),
    # Its own time-out is an error of the function, not the component's time-out.
    "TimeoutError": ("def score(responses):\n    raise TimeoutError('socket')", "TimeoutError: socket (mine.py:2)"),
    "async TimeoutError": (
        "import asyncio\nasync def score(responses):\n    await asyncio.wait_for(asyncio.sleep(9), 0.01)",
        "TimeoutError (mine.py:3)",
    ),
    "syntax of what it reads": (
        "import ast\ndef score(responses):\n    return ast.literal_eval('1 +')",
        "SyntaxError: invalid syntax (<unknown>, line 1) (mine.py:3)",
    ),
}


@pytest.mark.parametrize(("code", "said"), [pytest.param(*case, id=name) for name, case in RAISING.items()])
def test_an_exception_stops_the_run_with_the_line_of_the_function(code: str, said: str) -> None:
    made = scorer(code)
    with pytest.raises(RunError) as caught:
        scores(made)
    assert said in str(caught.value)
    assert caught.value.__cause__ is not None  # for the traceback in the log


SLEEPING = {
    "in a thread": "import time\ndef score(responses):\n    time.sleep(5)\n    return [1, 1]",
    "async": "import asyncio\nasync def score(responses):\n    await asyncio.sleep(30)",
    "an awaitable": "import asyncio\ndef score(responses):\n    return asyncio.sleep(30)",
}


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in SLEEPING.items()])
def test_a_group_that_takes_too_long_has_no_value(code: str) -> None:
    start = time.perf_counter()
    assert scores(scorer(code, timeout_s=0.05)) == [Missing("no result within 0.05 s")] * 2
    assert time.perf_counter() - start < 4, "waited for the function"


def test_threads_are_bounded_and_waiting_for_one_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openrlhf_maestro.rewards.callables.MAX_THREADS", 1)
    made = scorer(
        """
        import time
        running = 0
        def score(responses):
            global running
            running += 1
            time.sleep(0.3)
            running -= 1
            return [running, running]
        """,
        timeout_s=0.8,
    )

    async def four() -> list[list[Score]]:
        return await asyncio.gather(*(made.score(GROUP) for _ in range(4)))

    # 1.2 s one after the other; the last waits 0.9 s before it runs.
    assert asyncio.run(four()) == [[0.0, 0.0]] * 4


def test_a_plain_function_does_not_block_the_loop_and_leaves_no_thread_of_the_process() -> None:
    made = scorer("import time\ndef score(responses):\n    time.sleep(0.3)\n    return [1, 1]", timeout_s=5)
    daemons: list[bool] = []

    async def meanwhile() -> int:
        task, ticks = asyncio.create_task(made.score(GROUP)), 0
        while not task.done():
            daemons.extend(thread.daemon for thread in threading.enumerate() if thread.name == "reward-function")
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(meanwhile()) >= 10
    assert daemons and all(daemons)


# ── OpenRLHF's reward functions ──

# The shape of OpenRLHF's own examples: tensors in a dict, the response cut out of the query.
OPENRLHF_FILE = """
    import torch

    CALLS = []

    def reward_func(queries, prompts, labels, **kwargs):
        assert not kwargs
        CALLS.append((queries, prompts, labels))
        right = []
        for query, prompt, label in zip(queries, prompts, labels):
            answer = query[len(prompt):] if prompt in query else query
            right.append(float(answer.removesuffix("<end>") == label))
        rewards = torch.tensor(right)
        return {"rewards": rewards, "scores": 1 - rewards, "extra_logs": {"accuracy": rewards.mean()}}
"""


def test_a_reward_func_is_called_as_openrlhf_does() -> None:
    made = scorer(OPENRLHF_FILE, "mine.py:reward_func")
    assert scores(made) == [1.0, 0.0]  # `rewards`, not `scores`
    calls = made._function.__globals__["CALLS"]
    assert sorted(calls) == [
        (["<user>2 + 2?<bot>4<end>"], ["<user>2 + 2?<bot>"], ["4"]),
        (["<user>2 + 2?<bot>five"], ["<user>2 + 2?<bot>"], ["4"]),
    ]


def test_the_label_is_empty_where_there_is_no_reference() -> None:
    made = scorer("def score(queries, prompts, labels): return {'rewards': float(labels == [''])}")
    assert scores(made, Group("p", "p", ["pr"], ["r"], [[1]], [False])) == [1.0]


OPENRLHF_RESULTS = {
    "a tensor of one": ("{'rewards': torch.tensor([0.5])}", 0.5),
    "a scalar": ("{'rewards': torch.tensor(0.5), 'scores': None}", 0.5),
    "a number": ("{'rewards': 0.5}", 0.5),
    "a list": ("{'rewards': [0.5]}", 0.5),
    "a tensor of rank 2": ("{'rewards': torch.tensor([[0.5]])}", 0.5),
    "the tensor alone": ("torch.tensor([0.5])", 0.5),
    "the response's fault": ("{'rewards': torch.tensor([float('-inf')])}", -INF),
    "no reward": ("{'rewards': None}", Missing("returned None")),
    "nothing": ("None", Missing("returned None")),
    "not a number": ("{'rewards': torch.tensor([float('nan')])}", Missing("returned nan")),
}


@pytest.mark.parametrize(("result", "value"), [pytest.param(*case, id=name) for name, case in OPENRLHF_RESULTS.items()])
def test_results_of_a_reward_func(result: str, value: Score) -> None:
    assert scores(scorer(f"import torch\ndef score(queries, prompts, labels): return {result}")) == [value, value]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("{'scores': [1.0]}", "returned a dict without `rewards`: {'scores': [1.0]}"),
        ("{'rewards': torch.zeros(2)}", "returned [0.0, 0.0] (list), which is no number"),
        ("{'rewards': 'good'}", "returned 'good' (str), which is no number"),
    ],
)
def test_other_results_of_a_reward_func_stop_the_run(result: str, said: str) -> None:
    message = failure(f"import torch\ndef score(queries, prompts, labels): return {result}")
    assert said in message
    assert "It should return one number or None." in message


def test_a_failing_reward_func_stops_the_run() -> None:
    assert "raised IndexError: list index out of range (mine.py:2)" in failure(
        "def score(queries, prompts, labels):\n    return labels[1]"
    )


def test_the_time_of_a_reward_func_is_that_of_one_response() -> None:
    made = scorer(
        """
        import time
        def score(queries, prompts, labels):
            time.sleep(0 if queries[0].endswith("<end>") else 5)
            return {"rewards": 1.0}
        """,
        timeout_s=0.4,
    )
    assert scores(made) == [1.0, Missing("no result within 0.4 s")]


# ── functions that cannot be used ──

BAD_SIGNATURES = {
    "unknown": ("def score(response): ...", "asks for `response`, which there is not. Did you mean `responses`?"),
    "unknown beside known": ("def score(responses, colour): ...", "asks for `colour`, which there is not. There are"),
    "positional only": ("def score(responses, /): ...", "its parameter `responses` is positional-only"),
    "nothing": ("def score(): ...", "asks for nothing that it could score. There are prompts, responses,"),
    "nothing known": ("def score(wanted=4): ...", "asks for nothing that it could score"),
    "only *args": ("def score(*args): ...", "asks for nothing that it could score"),
    "half of OpenRLHF's": ("def score(queries, labels): ...", "asks for `queries`, which there is not. There are"),
    "more than OpenRLHF's": (
        "def score(queries, prompts, labels, responses): ...",
        "asks for `responses`, which there is not.",
    ),
    "unreadable": ("score = max", "mine.py:score has no signature that can be read"),
    "no function": ("score = 3", "mine.py:score is of type int. Name a function"),
    "a class": (
        "class score:\n    def __init__(self, responses): ...",
        "is of type type. Name a function, or an object",
    ),
    "absent": ("def scores(responses): ...", "mine.py has no `score`. Did you mean `scores`?"),
    "broken": (
        "def score(responses):\n    return [",
        "mine.py cannot be imported: SyntaxError: '[' was never closed (mine.py:2)",
    ),
    "failing": ("x = 1\ny = x / 0", "mine.py cannot be imported: ZeroDivisionError: division by zero (mine.py:2)"),
    "exiting": ("import sys\nsys.exit('no key')", "mine.py cannot be imported: SystemExit: no key (mine.py:2)"),
    "missing what it imports": (
        "\n\nimport absent_package",
        "mine.py cannot be imported: ModuleNotFoundError: No module named 'absent_package' (mine.py:3). Mend it",
    ),
}


@pytest.mark.parametrize(("code", "said"), [pytest.param(*case, id=name) for name, case in BAD_SIGNATURES.items()])
def test_a_function_that_cannot_be_called_is_refused_at_the_start(code: str, said: str) -> None:
    assert said in refused(code)


def test_a_ray_remote_function_is_refused() -> None:
    """As in OpenRLHF 0.11.2, which calls the function itself."""
    code = """
        class RemoteFunction:
            __module__ = "ray.remote_function"
            def __call__(self, *args, **kwargs): raise TypeError("Remote functions cannot be called directly.")
        score = RemoteFunction()
        """
    assert "mine.py:score is a Ray remote function" in refused(code)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("mine.py", "`mine.py` names no function. Write module:function or file.py:function (mine.py:reward_func)."),
        ("mine.py:", "`mine.py:` names no function."),
        (":score", "`:score` names no function."),
        ("nine.py:score", "there is no file nine.py (looked for {}/nine.py). Did you mean `mine.py`?"),
        ("far/mine.py:score", "there is no file far/mine.py (looked for {}/far/mine.py)."),
        ("mne:score", "there is no module mne, neither installed nor in {}. Did you mean `mine`?"),
        ("openrlhf_maestro.reward:f", "there is no module openrlhf_maestro.reward,"),
        ("openrlhf_maestro.reward:f", "Did you mean `rewards`?"),
        ("json:load_", "json has no `load_`. Did you mean `load`?"),
        ("mine.inner:score", "there is no module mine.inner,"),
    ],
)
def test_a_function_that_is_not_there_is_refused_with_the_nearest_name(function: str, said: str) -> None:
    message = refused("def score(responses): ...", function)
    assert said.replace("{}", str(Path.cwd().resolve())) in message


# ── where functions are found ──


def test_a_module_of_the_working_directory_and_one_beside_a_file(working_directory: Path) -> None:
    folder = working_directory / "kit"
    folder.mkdir()
    (folder / "words_beside.py").write_text("WANTED = '4'")
    code = "from words_beside import WANTED\ndef score(responses): return [r == WANTED for r in responses]"
    (folder / "by_file.py").write_text(code)
    (folder / "by_module.py").write_text("def score(responses): return [len(r) for r in responses]")
    for function, expected in (("kit/by_file.py:score", [1.0, 0.0]), ("kit.by_module:score", [1.0, 4.0])):
        assert scores(CallableScorer(CallableComponent(function=function))) == expected


def test_an_installed_function() -> None:
    with pytest.raises(ConfigError, match="reward component callable: textwrap:dedent asks for `text`"):
        CallableScorer(CallableComponent(function="textwrap:dedent"))


def test_two_components_of_one_file_share_what_it_loads() -> None:
    code = (
        "import itertools\nNUMBERS = itertools.count()\ndef score(responses): return [next(NUMBERS) for _ in responses]"
    )
    first, second = scorer(code), scorer(code)
    assert scores(first) == [0.0, 1.0]
    assert scores(second) == [2.0, 3.0]


def test_a_file_may_define_dataclasses_and_a_second_try_sees_the_mended_file() -> None:
    refused("import dataclasses\nraise ValueError")
    made = scorer(
        """
        from __future__ import annotations
        import dataclasses
        @dataclasses.dataclass
        class Rule:
            wanted: str
        def score(responses): return [Rule(r).wanted == '4' for r in responses]
        """
    )
    assert scores(made) == [1.0, 0.0]


# ── a component on a few texts ──


def test_try_component(working_directory: Path) -> None:
    Path("mine.py").write_text(
        "def score(responses, references, prompts, datasources, metadata, token_ids, messages, truncated):\n"
        "    given = [prompts[0], references[0], datasources[0], metadata[0], messages[0], truncated]\n"
        "    assert given == ['p', '4', 'sums', {'a': 1}, [{'role': 'user', 'content': 'p'}], [False, False]], given\n"
        "    return [len(ids) for ids in token_ids]"
    )
    section = CallableComponent(function="mine.py:score")
    given = {"prompt": "p", "reference": "4", "datasource": "sums", "metadata": {"a": 1}}
    assert try_component(section, ["4", "é"], **given) == [1.0, 2.0]
    assert try_component(FormatComponent(), ["<think>a</think><answer>b</answer>", ""]) == [1.0, 0.0]
    with pytest.raises(ConfigError, match="`perplexity` is measured by a model"):
        try_component(PerplexityComponent(), ["4"])


def test_try_component_with_a_reward_func() -> None:
    Path("mine.py").write_text(textwrap.dedent(OPENRLHF_FILE))
    found: Callable[..., list[Score]] = try_component
    assert found(CallableComponent(function="mine.py:reward_func"), ["4", "5"], prompt="2 + 2?", reference="4") == [
        1,
        0,
    ]
