"""What cannot work is refused before anything is loaded: exit code 2, one paragraph, at once."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

LIMIT_S = 15


@pytest.fixture
def ray_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray would put its session."""
    folder = tmp_path_factory.mktemp("ray")
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder


@pytest.fixture
def refused(start: Callable[..., Any], ray_folder: Path) -> Callable[..., str]:
    """Runs, checks what every refusal has in common, and returns what was said."""

    def run_and_check(options: dict[str, Any], **settings: Any) -> str:
        began = time.monotonic()
        run = start(options, **settings)
        try:
            code = run.wait(timeout_s=60)
        except subprocess.TimeoutExpired:
            run.kill()
            pytest.fail(f"still running after a minute:\n{run.output}\n{run.stderr}")
        took_s = time.monotonic() - began
        said = run.stderr.strip()
        assert code == 2, f"exit code {code}\n{run.output}\n{said}"
        assert took_s < LIMIT_S
        assert said.startswith("maestro: ")
        assert "\n\n" not in said and "Traceback" not in said
        assert len(said) < 600
        assert not list(ray_folder.iterdir()), "a Ray session was started"
        assert not run.directory.exists(), "a run directory was made for a run that cannot work"
        return said

    return run_and_check


def test_misspelt_key(refused: Callable[..., str], small_options: dict[str, Any]) -> None:
    said = refused(small_options | {"rollout.temprature": 0.7})
    assert "rollout.temprature" in said and "rollout.temperature" in said


def test_missing_config_file(refused: Callable[..., str]) -> None:
    assert "no_such_file.yaml" in refused({}, config="no_such_file")


def test_missing_data_file(refused: Callable[..., str], small_options: dict[str, Any], tmp_path: Path) -> None:
    missing = tmp_path / "no_such_rows.jsonl"
    assert str(missing) in refused(small_options | {"data.prompt_dataset": missing})


def test_missing_reference_column(refused: Callable[..., str], small_options: dict[str, Any], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Say {n}.", "answer": str(n)}) + "\n" for n in range(8)))
    said = refused(small_options | {"data.prompt_dataset": rows, "eval.dataset": "null"})
    assert "reference" in said and "perplexity" in said
    assert "answer" in said, "the columns that there are, so that the right one can be named"


def test_responses_that_do_not_divide(refused: Callable[..., str], small_options: dict[str, Any]) -> None:
    # 5 x 4 = 20 responses, 2 ranks x 4 a micro-batch: 16 and 24 are the neighbours, of 4 and 6 prompts.
    said = refused(small_options | {"rollout.batch_size": 5, "train.batch_size": 16})
    assert "rollout.micro_batch_size" in said
    assert "4 or 6" in said


def test_absent_split(refused: Callable[..., str], small_options: dict[str, Any]) -> None:
    said = refused(small_options | {"eval.split": "tset"})
    assert "`tset`" in said
    assert "test, train, validation" in said, "the splits that there are"


def test_model_folder_that_is_none(refused: Callable[..., str], small_options: dict[str, Any], tmp_path: Path) -> None:
    said = refused(small_options | {"actor.model_name_or_path": tmp_path})
    assert str(tmp_path) in said
