"""`maestro report --watch`: again when files change, and only then; the last page does not load itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openrlhf_maestro.report.run import load_run
from openrlhf_maestro.report.watch import fingerprint, watch

REFRESH = '<meta http-equiv="refresh" content="{}">'


def make_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("run: {name: watched, max_steps: 5}")
    add_step(folder, 1)
    return folder


def add_step(folder: Path, step: int) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "reward/scalar_mean": 0.5}) + "\n")


def finish(folder: Path) -> None:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/config.json").write_text("{}")
    later = (folder / "metrics.jsonl").stat().st_mtime + 1
    os.utime(folder / "model/config.json", (later, later))


def test_it_writes_at_first_after_changes_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run")
    # What happens during each sleep.
    events = iter([lambda: None, lambda: add_step(folder, 2), lambda: None, lambda: finish(folder)])
    monkeypatch.setattr("time.sleep", lambda seconds: next(events)())
    written: list[tuple[bool, int]] = []
    watch(
        [folder],
        lambda again: written.append((again, load_run(folder).last_step)),
        lambda: load_run(folder).finished,
        interval_s=3,
    )
    assert written == [(True, 1), (True, 2), (False, 2)]


def test_a_change_of_any_file_of_the_page_is_seen_and_of_the_page_itself_is_not(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "rollouts").mkdir()
    before = fingerprint([folder])
    (folder / "report.html").write_text("the page")
    assert fingerprint([folder]) == before
    (folder / "rollouts/step_000001.parquet").write_text("")
    after = fingerprint([folder])
    assert after != before
    (folder / "rollouts/step_000001.parquet").write_text("more")
    assert fingerprint([folder]) != after


def test_a_run_is_finished_when_its_model_is_newer_than_its_last_step(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert not load_run(folder).finished
    finish(folder)
    assert load_run(folder).finished
    add_step(folder, 2)  # resumed with more steps
    os.utime(folder / "metrics.jsonl", (time.time() + 60, time.time() + 60))
    assert not load_run(folder).finished


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "openrlhf_maestro", "report", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_follows_a_run_to_its_end(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    page = folder / "report.html"
    process = start(str(folder), "--watch", "--interval_s", "1")
    assert process.stdout is not None
    assert process.stdout.readline() == f"{page}\n"
    assert REFRESH.format(1) in page.read_text(encoding="utf-8")
    finish(folder)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1] == f"{page}, the last time: finished"
    assert 'http-equiv="refresh"' not in page.read_text(encoding="utf-8")


def test_ctrl_c_ends_it_like_every_command(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    process = start(str(folder), "--watch")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "maestro: interrupted\n")
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
