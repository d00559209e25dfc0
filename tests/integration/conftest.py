"""Runs of the command line on the real stack, shared by the tests of this folder.

A run is a process of its own, as a user starts it. The bundled models lie in the repository's `assets/`, so that they
are made once and kept; everything else goes to a temporary folder.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import psutil
import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ASSETS = REPOSITORY / "assets"
COMPONENTS = ("format", "perplexity", "entropy", "length", "preference")
SEED = 42

# A step that takes a fraction of a second: 4 prompts x 4 responses, of which some are cut at 32 tokens.
SMALL: dict[str, Any] = {
    "run.assets_dir": ASSETS,
    "rollout.batch_size": 4,
    "rollout.n_samples_per_prompt": 4,
    "rollout.micro_batch_size": 4,
    "rollout.max_new_tokens": 32,
    "train.batch_size": 16,
    "train.micro_batch_size": 4,
    "train.seed": SEED,
}
# Everything of the method within 4 steps: a policy and a Conductor that visibly move, two synchronised references.
MAIN: dict[str, Any] = SMALL | {
    "run.max_steps": 4,
    "actor.adam.lr": 1e-3,
    "conductor.update_steps": 2,
    "conductor.lr": 1e-2,
    "objective.ref_sync_steps": 2,
    "ckpt.save_steps": 2,
    "eval.max_samples": 40,
}


@dataclass
class Run:
    """A `maestro` process: its output, and its run directory."""

    process: subprocess.Popen[bytes]
    directory: Path
    log: Path
    started_s: float

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.log.with_suffix(".err").read_text(errors="replace")

    def wait(self, timeout_s: float = 400) -> int:
        return self.process.wait(timeout_s)

    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl, step 0 included where there was an evaluation before the first step."""
        file = self.directory / "metrics.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def steps(self) -> list[dict[str, Any]]:
        return [line for line in self.metrics() if line["step"] > 0]

    def rollouts(self, step: int) -> dict[str, list[Any]]:
        return pq.read_table(self.directory / "rollouts" / f"step_{step:06d}.parquet").to_pydict()

    def wait_for_step(self, step: int, timeout_s: float = 400) -> None:
        """Until that step's line is in metrics.jsonl; fails where the process ends before."""
        deadline = time.monotonic() + timeout_s
        while not any(line["step"] >= step for line in self.metrics()):
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output}\n{self.stderr}"
            assert time.monotonic() < deadline, f"no step {step} within {timeout_s} s:\n{self.output}"
            time.sleep(0.02)

    def descendants(self) -> list[psutil.Process]:
        """Every process that this one has started, at any depth."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """SIGKILL to the process and, as Ray's own live in other process groups, to all that it started."""
        started = self.descendants()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for process in started:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(started, timeout=20)


Start = Callable[..., Run]


def _arguments(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`start(options, directory=None, config="quick_start", command="train")`: a process in the background."""
    folder = tmp_path_factory.mktemp("maestro")
    runs: list[Run] = []

    def start_run(
        options: dict[str, Any], directory: Path | None = None, config: str = "quick_start", command: str = "train"
    ) -> Run:
        directory = directory or folder / f"run_{len(runs)}"
        log = folder / f"output_{len(runs)}.out"
        arguments = [sys.executable, "-m", "openrlhf_maestro", command]
        if config:
            arguments += ["--config", str(REPOSITORY / "examples" / "configs" / f"{config}.yaml")]
        if command == "train":
            options = {"run.dir": directory} | options
        with log.open("wb") as out, log.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(
                [*arguments, *_arguments(options)],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        runs.append(Run(process, directory, log, time.monotonic()))
        return runs[-1]

    yield start_run
    for run in runs:
        run.kill()


@pytest.fixture(scope="session")
def finished(start: Start) -> Callable[..., Run]:
    """Like `start`, but waits for the end and insists on exit code 0."""

    def run_to_the_end(options: dict[str, Any], **settings: Any) -> Run:
        run = start(options, **settings)
        code = run.wait()
        assert code == 0, f"exit code {code}\n{run.output}\n{run.stderr}"
        return run

    return run_to_the_end


@pytest.fixture(scope="session")
def main_options() -> dict[str, Any]:
    return dict(MAIN)


@pytest.fixture(scope="session")
def small_options() -> dict[str, Any]:
    return dict(SMALL)


@pytest.fixture(scope="session")
def main_run(finished: Callable[..., Run]) -> Run:
    """Conductor, five components, two ZeRO-3 ranks, reference, preference model, held-out accuracy; 4 steps."""
    return finished(MAIN)


@pytest.fixture(scope="session")
def cold_start(main_run: Run) -> Path:
    """The folder of the model that `main_run` started from."""
    state = json.loads((main_run.directory / "checkpoints" / "global_step_4" / "state.json").read_text())
    return Path(state["actor.model_name_or_path"])


@pytest.fixture(scope="session")
def run_python() -> Callable[..., str]:
    """`run_python(code, *arguments)`: the output of a fresh interpreter that may load models on a CPU."""
    from openrlhf_maestro.launch.environment import process_environment

    def run(code: str, *arguments: str) -> str:
        environment = os.environ | process_environment("cpu", trust_remote_code=False)
        environment |= {
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


SERVER_START_LIMIT_S, SERVER_STOP_LIMIT_S = 400.0, 30.0


@contextmanager
def process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with all that it started; the first gets the time to give shared memory back."""
    with log.open("wb") as output:
        started = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield started
    finally:
        if started.poll() is None:
            family = [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]
            started.send_signal(signal.SIGTERM)
            for left in psutil.wait_procs(family, timeout=SERVER_STOP_LIMIT_S)[1]:
                left.kill()


@pytest.fixture(scope="session")
def judge_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a vLLM server in fp32, up and ready: model `judge`, untrained, key `local`."""
    from openrlhf_maestro.data.assets import PolicyRecipe, ensure_asset
    from openrlhf_maestro.launch.environment import process_environment

    # The instructions take hundreds of tokens of its small vocabulary. Large weights, so that its replies differ.
    model = ensure_asset("policy_base", ASSETS, PolicyRecipe(max_position_embeddings=2048, initializer_range=0.2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"model": model, "served-model-name": "judge", "host": "127.0.0.1", "port": port, "dtype": "float32"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, "--enforce-eager"]
    environment = os.environ | process_environment("cpu", trust_remote_code=False)
    environment |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_API_KEY": "local"}
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with process(command, environment, log) as server:
        deadline_s = time.monotonic() + SERVER_START_LIMIT_S
        while not healthy(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
