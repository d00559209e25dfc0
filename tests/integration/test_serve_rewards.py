"""`maestro serve-rewards` as a process: our client against it, and OpenRLHF's client and server, unmodified."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from openrlhf_maestro.config.components import RemoteComponent
from openrlhf_maestro.data.assets import ensure_asset
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.launch.environment import process_environment
from openrlhf_maestro.rewards import FAULT, Group, Missing
from openrlhf_maestro.rewards.components import Context, make_components
from openrlhf_maestro.rewards.remote import RemoteScorer

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
TOKEN = "integration-token-integration-token"
GOOD, BAD = "<think>two and two</think><answer>four</answer>", "four"
SECRET = "mulberry"  # in every prompt and response that is sent, and never in a server's output

FUNCTIONS = '''
def vowels(responses, references):
    """None for a response with a question mark; a fault for one that says the reference."""
    return [None if "?" in text else float("-inf") if text == reference else sum(letter in "aeiou" for letter in text)
            for text, reference in zip(responses, references)]

def broken(responses):
    raise ValueError("the function has a bug")
'''


class Process:
    """A server in the background and where it listens."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log, self.url = process, log, ""

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, pattern: str, timeout_s: float = 120) -> str:
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.output)):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)
        return found.group(1)

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


Serve = Callable[..., Process]


@pytest.fixture(scope="module")
def background(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Process]]:
    """`background(arguments, **environment)`: a Python process whose output is kept; ended after the tests."""
    folder = tmp_path_factory.mktemp("servers")
    started: list[Process] = []

    def start(arguments: list[str], **environment: str) -> Process:
        log = folder / f"{len(started)}.log"
        variables = os.environ | process_environment("cpu", trust_remote_code=False) | environment
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=REPOSITORY,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        started.append(Process(process, log))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def serve(background: Callable[..., Process]) -> Serve:
    """`serve(components, **options)`: a reward server that listens; token, unless the options say otherwise."""

    def start(components: list[dict[str, Any]], port: int = 0, wait: bool = True, **options: Any) -> Process:
        settings = {"serve.port": port, "rewards.components": json.dumps(components)} | options
        arguments = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        server = background(["-m", "openrlhf_maestro", "serve-rewards", *arguments], MAESTRO_REWARD_TOKEN=TOKEN)
        if wait:
            server.url = server.wait_for(r"serving .* at (http://\S+/score)")
        return server

    return start


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("functions") / "my_rewards.py"
    file.write_text(FUNCTIONS)
    return file


@pytest.fixture(scope="module")
def components(functions: Path) -> list[dict[str, Any]]:
    return [
        {"kind": "format"},
        {"kind": "length", "l_min": 4, "l_max": 12},
        {"kind": "callable", "name": "vowels", "function": f"{functions}:vowels"},
        {"kind": "callable", "name": "gated", "function": f"{functions}:vowels", "gate": "format"},
        {"kind": "callable", "name": "broken", "function": f"{functions}:broken"},
    ]


@pytest.fixture(scope="module")
def server(serve: Serve, components: list[dict[str, Any]]) -> Process:
    return serve(components)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAESTRO_REWARD_TOKEN", TOKEN)


def make_group(*responses: str, **fields: Any) -> Group:
    prompt = f"What is 2 + 2, {SECRET}?"
    return Group(
        **{
            "prompt": prompt,
            "rendered_prompt": f"<user>{prompt}",
            "queries": [f"<user>{prompt}{text}<end>" for text in responses],
            "responses": responses,
            "token_ids": [list(range(len(text.split()) + 1)) for text in responses],
            "truncated": [False] * len(responses),
            "reference": SECRET,
            "messages": [{"role": "user", "content": prompt}],
        }
        | fields
    )


GROUP = make_group(GOOD, BAD, f"{GOOD}?", SECRET, " ".join(["word"] * 20))


def ask(group: Group, *sections: RemoteComponent) -> list[Any]:
    """The scores of every section's component, asked for together as in a run."""

    async def call() -> list[Any]:
        made = make_components(sections, Context(max_new_tokens=1))
        try:
            return [list(scores) for scores in await asyncio.gather(*(part.scorer.score(group) for part in made))]  # type: ignore[arg-type]
        finally:
            for part in made:
                await part.scorer.close()  # type: ignore[union-attr]

    return asyncio.run(call())


def remote(server: Process, name: str, **options: Any) -> RemoteComponent:
    return RemoteComponent(**({"url": server.url, "name": name, "retry_s": 0} | options))


# ── our client, our server ──


def test_vectors_faults_and_missing_values_over_http(server: Process) -> None:
    names = ("format", "length", "vowels", "gated")
    scores = dict(zip(names, ask(GROUP, *(remote(server, name) for name in names)), strict=True))
    assert scores["format"] == [1.0, 0.0, 0.0, 0.0, 0.0]
    # Tokens: 4, 2, 4, 2, 21; full reward up to 4, none from 12.
    assert scores["length"] == [1.0, 1.0, 1.0, 1.0, 0.0]
    good = float(sum(letter in "aeiou" for letter in GOOD))
    assert scores["vowels"][:2] == [good, 2.0] and scores["vowels"][3:] == [FAULT, 20.0]
    assert isinstance(scores["vowels"][2], Missing)
    # The gate is closed for all but the first.
    assert scores["gated"] == [good, FAULT, FAULT, FAULT, FAULT]


def test_the_scores_are_those_of_the_components_in_this_process(
    server: Process, components: list[dict[str, Any]]
) -> None:
    from openrlhf_maestro.config.serve import ServeConfig
    from openrlhf_maestro.rewards.panel import make_panel

    panel = make_panel(ServeConfig.model_validate({"rewards": {"components": components}}))
    names = ("format", "length", "vowels", "gated")
    here = asyncio.run(panel.scores(GROUP, names))
    assert ask(GROUP, *(remote(server, name) for name in names)) == [here[name] for name in names]


@pytest.mark.parametrize("wrong", ["", "wrong", TOKEN.upper()])
def test_a_wrong_token_stops_the_run(server: Process, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAESTRO_REWARD_TOKEN", wrong)
    with pytest.raises(RunError, match=r"status 401.*MAESTRO_REWARD_TOKEN") as caught:
        ask(GROUP, remote(server, "format", retry_s=60))
    assert TOKEN not in str(caught.value) and TOKEN.upper() not in str(caught.value)


def test_what_the_server_refuses_stops_the_run(server: Process) -> None:
    with pytest.raises(RunError, match=r"status 422: .*no component nothing; there are format, length"):
        ask(GROUP, remote(server, "nothing", retry_s=60))
    with pytest.raises(RunError, match="status 404"):
        ask(GROUP, remote(server, "format", url=server.url.replace("/score", "/sorce"), retry_s=60))
    with pytest.raises(RunError, match=r"status 424: .*the function has a bug"):
        ask(GROUP, remote(server, "broken", retry_s=60))


def test_a_request_over_the_limits_stops_the_run(serve: Serve) -> None:
    small = serve([{"kind": "format"}], **{"serve.max_body_mib": 0.1, "serve.max_responses": 4})
    assert ask(make_group(GOOD, BAD), remote(small, "format")) == [[1.0, 0.0]]
    # Large enough that the server answers before the client has sent it all.
    with pytest.raises(RunError, match=r"status 413.*serve\.max_body_mib"):
        ask(make_group("x" * 20_000_000), remote(small, "format", retry_s=60))
    with pytest.raises(RunError, match=r"status 413.*5 responses"):
        ask(GROUP, remote(small, "format", retry_s=60))


def test_many_groups_at_once(server: Process) -> None:
    groups = [make_group(*[GOOD] * k, *[BAD] * 3) for k in range(40)]

    async def call() -> list[Any]:
        scorer = RemoteScorer(remote(server, "format", concurrency=8))
        try:
            return await asyncio.gather(*(scorer.score(group) for group in groups))
        finally:
            await scorer.close()

    assert asyncio.run(call()) == [[1.0] * k + [0.0] * 3 for k in range(40)]


def test_a_server_that_comes_up_late_is_waited_for(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    late = serve([{"kind": "format"}], port=port, wait=False)
    late.url = f"http://127.0.0.1:{port}/score"
    assert ask(make_group(GOOD), remote(late, "format", retry_s=120)) == [[1.0]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_what_is_under_way(serve: Serve, tmp_path: Path, number: int) -> None:
    (tmp_path / "slow.py").write_text("import time\ndef slow(responses):\n    time.sleep(2)\n    return [1.0]\n")
    slow = serve([{"kind": "callable", "name": "slow", "function": f"{tmp_path}/slow.py:slow"}])

    async def call() -> Any:
        scorer = RemoteScorer(remote(slow, "slow"))
        asked = asyncio.create_task(scorer.score(make_group(GOOD)))
        await asyncio.sleep(1)
        slow.process.send_signal(number)
        scores = await asked
        await scorer.close()
        return scores

    assert asyncio.run(call()) == [1.0]
    assert slow.process.wait(30) == 0
    assert slow.output.splitlines()[-1] == "stopped" and "Traceback" not in slow.output


def test_the_console_says_what_is_served_and_nothing_that_was_sent(server: Process) -> None:
    first = server.output.splitlines()[0]
    assert first == (
        f"serving format, length, vowels, gated, broken at {server.url}, with the bearer token; Ctrl-C ends it"
    )
    ask(GROUP, remote(server, "format"))
    httpx.post(server.url, content=SECRET, headers={"content-type": "application/json"})
    httpx.post(server.url, json={"groups": SECRET}, headers={"authorization": f"Bearer {TOKEN}"})
    server.wait_for(r"(POST /score: 422)")
    assert "POST /score: 401" in server.output
    assert SECRET not in server.output and TOKEN not in server.output


def test_a_run_gets_the_values_that_it_would_compute_itself(
    serve: Serve, finished: Callable[..., Any], small_options: dict[str, Any]
) -> None:
    tokenizer = ensure_asset("policy_base", REPOSITORY / "assets")
    weights = json.dumps({"format": 1, "length": 0})
    served = serve(
        [{"kind": "format"}, {"kind": "length", "l_max": small_options["rollout.max_new_tokens"]}],
        **{"serve.policy_tokenizer": tokenizer, "rewards.weights": weights},
    )
    far = {"kind": "remote", "url": served.url, "retry_s": 0}
    components = [
        {"kind": "format"},
        {"kind": "length"},
        far | {"name": "far_format", "component": "format", "normalisation": "none"},
        far | {"name": "far_length", "component": "length"},
        far | {"name": "single", "protocol": "openrlhf", "url": served.url.replace("/score", "/get_reward")},
    ]
    run = finished(
        small_options
        | {
            "run.max_steps": 2,
            "eval.dataset": "null",
            "algo.kl.init_coef": 0,
            "conductor.kind": "equal",
            "rewards.components": json.dumps(components),
        }
    )
    for step in (1, 2):
        rows = run.rollouts(step)
        assert rows["raw_far_format"] == rows["raw_format"] == rows["raw_single"]
        assert rows["raw_far_length"] == rows["raw_length"]
        assert len(set(rows["raw_format"])) > 1 or len(set(rows["raw_length"])) > 1
        assert rows["norm_far_format"] == rows["norm_format"]


# ── the preference model ──


@pytest.fixture(scope="module")
def preference() -> Path:
    return ensure_asset("preference", REPOSITORY / "assets")


def test_preference_scores_are_those_of_plain_transformers(serve: Serve, preference: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    options = {"reward.model_name_or_path": preference, "reward.device": "cpu", "reward.param_dtype": "fp32"}
    served = serve([{"kind": "preference"}], **options)
    group = make_group(GOOD, BAD, "Once there was an owl.", "")
    (scores,) = ask(group, remote(served, "preference"))
    tokenizer = AutoTokenizer.from_pretrained(preference)
    model = AutoModelForSequenceClassification.from_pretrained(preference, dtype=torch.float32)
    expected = []
    for text in group.responses[:3]:
        conversation = [*group.messages, {"role": "assistant", "content": text}]
        ids = tokenizer(tokenizer.apply_chat_template(conversation, tokenize=False), add_special_tokens=False)
        with torch.no_grad():
            expected.append(model(torch.tensor([ids["input_ids"]])).logits.item())
    # fp32; the server pads the three to one length.
    assert scores[:3] == pytest.approx(expected, abs=1e-4)
    assert scores[3] == FAULT


# ── OpenRLHF's server ──

# OpenRLHF's module as it is, in fp32: half precision needs instructions that not every CPU has.
SERVE_RM = """
import runpy, sys, torch
from openrlhf_maestro.upstream.patches import prepare_process
prepare_process()
import openrlhf.utils.utils
openrlhf.utils.utils.convert_to_torch_dtype = lambda name: torch.float32
model, port = sys.argv[1:]
sys.argv = ["serve_rm", "--reward.model_name_or_path", model, "--host", "127.0.0.1", "--port", port,
            "--ds.attn_implementation", "eager"]
runpy.run_module("openrlhf.cli.serve_rm", run_name="__main__")
"""


def test_our_client_against_openrlhfs_server(background: Callable[..., Process], preference: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    served = background(["-c", SERVE_RM, str(preference), str(port)], TORCHDYNAMO_DISABLE="1")
    served.wait_for("(Application startup complete)")
    served.url = f"http://127.0.0.1:{port}/get_reward"
    (scores,) = ask(GROUP, remote(served, "rm", protocol="openrlhf"))
    tokenizer = AutoTokenizer.from_pretrained(preference)
    model = AutoModelForSequenceClassification.from_pretrained(preference, dtype=torch.float32)
    expected = []
    for query in GROUP.queries:
        ids = torch.tensor([tokenizer(query, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            expected.append(model.score(model.base_model(ids).last_hidden_state[0, -1]).item())
    # fp32; serve_rm pads on the left.
    assert scores == pytest.approx(expected, abs=1e-4)


# ── OpenRLHF's client ──

OPENRLHF_CLIENT = """
import asyncio, json, sys
from types import SimpleNamespace
from openrlhf_maestro.upstream.patches import prepare_process
prepare_process()
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer
from vllm import SamplingParams

url, tokenizer_path, responses = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is 2 + 2?"}], tokenize=False, add_generation_prompt=True
)
executor = SingleTurnAgentExecutor(url)

class Engine:
    def __init__(self, ids, reason):
        self.output = SimpleNamespace(token_ids=ids, finish_reason=reason, logprobs=None)
    async def generate(self, *_arguments, **_options):
        return SimpleNamespace(outputs=[self.output])

def sample(text, stops):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * stops
    engine = Engine(ids, "stop" if stops else "length")
    return executor.execute(prompt, "four", SamplingParams(max_tokens=64), 256, tokenizer, engine)

async def main():
    return await asyncio.gather(*(sample(*response) for response in json.loads(responses)))

found = []
for response in asyncio.run(main()):
    experience = SamplesGenerator._process_response_into_experience(None, response)
    found.append({"reward": response["reward"], "scores": response["scores"], "logs": response["extra_logs"],
                  "rewards": experience.rewards.flatten().tolist(), "tokens": len(response["observation_tokens"])})
print("FOUND" + json.dumps(found))
"""


def test_an_unmodified_openrlhf_against_our_server(
    serve: Serve, functions: Path, run_python: Callable[..., str]
) -> None:
    tokenizer = ensure_asset("policy_base", REPOSITORY / "assets")
    options = {"serve.require_token": "false", "serve.policy_tokenizer": tokenizer}
    weights = json.dumps({"format": 2, "length": 1, "vowels": 1})
    components = [
        {"kind": "format"},
        {"kind": "length", "l_min": 1, "l_max": 1000},
        {"kind": "callable", "name": "vowels", "function": f"{functions}:vowels"},
    ]
    served = serve(components, **options, **{"rewards.weights": weights})
    assert "/get_reward, without a token" in served.output
    responses = [(GOOD, 1), (BAD, 1), ("four words", 0), ("four?", 1)]
    url = served.url.replace("/score", "/get_reward")
    found = json.loads(run_python(OPENRLHF_CLIENT, url, str(tokenizer), json.dumps(responses)).partition("FOUND")[2])

    from transformers import AutoTokenizer

    count = AutoTokenizer.from_pretrained(tokenizer)
    for (text, stops), got in zip(responses, found, strict=True):
        tokens = len(count(text, add_special_tokens=False)["input_ids"]) + stops
        # The label is the reference, so `vowels` calls BAD the response's own fault, 0 below every value of the rest;
        # and it has no value where there is a question mark.
        vowels = {BAD: 0.0, "four?": None}.get(text, 1 / (1 + 2.718281828459045 ** -sum(c in "aeiou" for c in text)))
        parts = [(2, float(text == GOOD)), (1, (1000 - tokens) / 999), (1, vowels)]
        present = [(weight, value) for weight, value in parts if value is not None]
        expected = sum(weight * value for weight, value in present) / sum(weight for weight, _ in present)
        # OpenRLHF keeps the list of one that its own server sends; float32 in the experience.
        assert got["reward"] == got["scores"] == pytest.approx([expected], rel=1e-9)
        assert got["rewards"] == pytest.approx([expected], rel=1e-6)
        assert got["logs"]["format"] == [float(text == GOOD)]
        assert got["logs"]["vowels_missing"] == [float(vowels is None)]
