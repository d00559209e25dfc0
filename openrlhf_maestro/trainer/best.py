"""The policy of the best evaluation so far, kept in run.dir/best."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from openrlhf_maestro.config.writing import write_atomically
from openrlhf_maestro.trainer.run_dir import RunDir

STATE = "best.json"
AUTO = ("eval/overall/accuracy", "eval/overall/score")


class BestModel:
    """Knows the best value of one metric and keeps what had it: `best/model`, `best/conductor` and best.json.

    A later step has to be better, not equal. A run that continues reads what was best before, unless that was after the
    checkpoint: it stays in the folder until the first evaluation, which then is the best one.
    """

    def __init__(self, run_dir: RunDir, key: str, done: int) -> None:
        """`key`: ckpt.best_metric_key, auto or the name of a metric, higher is better. `done`: steps done before."""
        self._folder = run_dir.best
        self._old = self._folder.with_name(f".{self._folder.name}.old")
        if self._old.is_dir() and not self._folder.is_dir():  # killed between the two renames of an update
            self._old.rename(self._folder)
        self._keys = AUTO if key == "auto" else (key,)
        state = self._folder / STATE
        known = json.loads(state.read_text()) if state.is_file() else {}
        if known.get("step", 0) > done:
            known = {}
        self.step: int | None = known.get("step")
        self._value: float | None = known.get("value")

    def update(self, step: int, metrics: Mapping[str, float], export: Callable[[Path], None]) -> bool:
        """Whether this evaluation is the best one; then `export(folder)` has written what had it."""
        key = next((key for key in self._keys if key in metrics), None)
        if key is None:
            return False
        value = metrics[key]
        if self._value is not None and value <= self._value:
            return False
        partial = self._folder.with_name(f".{self._folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        export(partial)
        write_atomically(partial / STATE, json.dumps({"step": step, "metric": key, "value": value}) + "\n")
        shutil.rmtree(self._old, ignore_errors=True)
        if self._folder.is_dir():
            self._folder.rename(self._old)
        partial.rename(self._folder)
        shutil.rmtree(self._old, ignore_errors=True)
        self.step, self._value = step, value
        return True
