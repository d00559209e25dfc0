"""`maestro report --watch`: writes the page again whenever the files of a run have changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from openrlhf_maestro.report.run import load_run

Fingerprint = dict[Path, tuple[int, int]]

# What a page is made from.
WATCHED = (
    "config.yaml",
    "metrics.jsonl",
    "model/config.json",
    "rollouts/step_*.parquet",
    "evaluations/step_*.parquet",
    "summary.json",
    "comparison.json",
)


def watch(
    folders: Sequence[Path], write: Callable[[bool], None], finished: Callable[[], bool], interval_s: int
) -> None:
    """Call `write(True)` now and after every change of the files, and once `write(False)` when `finished()`.

    Looks every `interval_s` seconds. The flag says whether the page is to load itself again. A user's KeyboardInterrupt
    passes.
    """
    seen: Fingerprint | None = None
    while True:
        # First what is there, then the page: a change in between is seen the next time.
        now, done = fingerprint(folders), finished()
        if done:
            write(False)
            return
        if now != seen:
            write(True)
            seen = now
        time.sleep(interval_s)


def all_finished(run_dirs: Iterable[Path]) -> bool:
    """Whether every run has written its final model."""
    return all(load_run(folder).finished for folder in run_dirs)


def fingerprint(folders: Iterable[Path]) -> Fingerprint:
    """Size and time of change of every file a page is made from. Files that vanish meanwhile are left out."""
    found: Fingerprint = {}
    for path in (path for folder in folders for pattern in WATCHED for path in folder.glob(pattern)):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found[path] = (status.st_size, status.st_mtime_ns)
    return found
