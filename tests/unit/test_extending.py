"""docs/extending.md as it is written: files saved, commands run, configurations loaded. And examples/rewards."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openrlhf_maestro.config import components as sections
from openrlhf_maestro.config.components import CallableComponent
from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards import FAULT, Group, Missing, answer_text, components, rules, try_component
from openrlhf_maestro.rewards.callables import ARGUMENTS, CallableScorer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"Save this as `([\w.]+)`[^`]*```\w+\n(.*?)```", PAGE, re.DOTALL))


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", PAGE, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(text) for text in found]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository root in which a reader has saved the page's files."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def run(command: str, folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def group(responses: list[str], reference: str | None = None) -> Group:
    return Group(
        "p",
        "p",
        [f"p{text}" for text in responses],
        responses,
        [[1]] * len(responses),
        [False] * len(responses),
        reference,
    )


def test_the_page_saves_the_files_it_uses() -> None:
    assert list(FILES) == ["my_rewards.py", "try_it.py", "my_reward.yaml"]


def test_the_function_is_tried_as_written(root: Path) -> None:
    (command,) = [text for text in blocks("bash") if "try_it.py" in text]
    assert run(command, root) == blocks("text")[0]


def test_the_function_tells_a_missing_value_from_a_fault(root: Path) -> None:
    component = CallableComponent(function="my_rewards.py:overlap")
    assert try_component(component, ["<think></think><answer>a b</answer>", "a"]) == [Missing("returned None"), FAULT]


@pytest.mark.parametrize("index", range(len(blocks("yaml"))))
def test_the_configurations_are_accepted_and_their_components_made(index: int, root: Path) -> None:
    (root / "config.yaml").write_text(blocks("yaml")[index])
    config = load_config(MaestroConfig, ["--config", "config.yaml"])
    assert config.notes() == []
    made = components.make_components(config.rewards.components, components.Context(96))
    (scorer,) = [part.scorer for part in made if isinstance(part.scorer, CallableScorer)]
    found = asyncio.run(scorer.score(group(["<think>r</think><answer>9</answer>", "<think>r</think>"], "9")))
    assert found == ([1.0, 0.0] if "reward_func" in blocks("yaml")[index] else [1.0, FAULT])


def test_the_command_of_the_training_is_accepted(root: Path) -> None:
    (command,) = [text for text in blocks("bash") if "maestro train" in text]
    program, subcommand, *arguments = command.split()
    assert (program, subcommand) == (".venv/bin/maestro", "train")
    config = load_config(MaestroConfig, arguments)
    assert (config.run.name, config.run.max_steps) == ("my_reward", 5)
    assert config.component_names == ["format", "perplexity", "entropy", "length", "preference", "overlap"]


def test_the_column_is_read_as_written(root: Path) -> None:
    documented = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    columns = {"raw_": 0.5, "norm_": 1.0, "weight_": 0.2}
    assert all(f"| `{prefix}<name>` |" in documented for prefix in columns)
    rows = {f"{prefix}overlap": [value] for prefix, value in columns.items()} | {
        "reference": ["nine"],
        "response": ["9"],
    }
    file = root / "runs" / "my_reward" / "rollouts" / "step_000001.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table(rows), file)
    (command,) = [text for text in blocks("bash") if "parquet" in text]
    assert run(command, root) == "0.5 1.0 0.2 nine | 9\n"


def test_the_keys_it_names_are_metrics() -> None:
    documented = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    keys = re.findall(r"`((?:reward|time|conductor)/[\w/]+)`", PAGE)
    assert len(keys) == 5
    for key in keys:
        assert f"`{key.replace('overlap', '<name>')}`" in documented, key


def test_every_argument_is_in_the_table() -> None:
    table = PAGE.partition("| argument | items |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(ARGUMENTS)


def test_a_built_in_kind_is_added_as_written() -> None:
    section, function, entry = blocks("python")[2:]
    scope = dict(vars(sections))
    exec(section, scope)
    ending = scope["EndingComponent"]
    scope = dict(vars(rules)) | {"EndingComponent": ending, "answer_text": answer_text}
    exec(function, scope)
    kind = eval(entry, dict(vars(components)) | {"ending_scores": scope["ending_scores"]})["ending"]
    scorer = kind.make(ending(ending="!"), components.Context(96))
    texts = ["<think>a</think><answer>Yes!</answer>", "<think>a</think><answer>Yes</answer>", "Yes!", ""]
    assert asyncio.run(scorer.score(group(texts))) == [1.0, 0.0, FAULT, FAULT]
    assert kind.normalisation == "none"


# ── examples/rewards ──


def test_the_example_of_a_reward_func() -> None:
    component = CallableComponent(function=f"{ROOT}/examples/rewards/reward_func.py:reward_func")
    texts = ["9", "4, no, 9", "9 or 4", "none", ""]
    assert try_component(component, texts, prompt="Which is larger: 4 9?", reference="9") == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert try_component(component, ["", "9"], prompt="p") == [0.0, 0.0]


class Grader(BaseHTTPRequestHandler):
    """Grades an answer by its length; knows no answer `refuse`."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(422 if asked["answer"] == "refuse" else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"score": len(asked["answer"]) + len(asked["question"])}).encode())

    def log_message(self, *_args: object) -> None:
        """Nothing on the screen."""


@pytest.fixture
def grader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Grader)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GRADER_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    server.shutdown()
    server.server_close()


def test_the_example_over_http(grader: None, monkeypatch: pytest.MonkeyPatch) -> None:
    component = CallableComponent(function=f"{ROOT}/examples/rewards/over_http.py:grade")
    form = "<think>r</think><answer>{}</answer>"
    assert try_component(component, [form.format("four"), "four"], prompt="2 + 2?") == [10.0, FAULT]
    with pytest.raises(RunError, match=r"raised HTTPStatusError: Client error '422 .*over_http\.py:\d+\)"):
        try_component(component, [form.format("refuse")], prompt="2 + 2?")
    monkeypatch.setenv("GRADER_URL", "http://127.0.0.1:9")  # nobody listens to the discard port
    assert try_component(component, [form.format("four")], prompt="2 + 2?") == [Missing("returned None")]
