"""What had the best evaluation is kept; a killed update leaves the one before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openrlhf_maestro.trainer.best import BestModel
from openrlhf_maestro.trainer.run_dir import RunDir

ACCURACY, SCORE = "eval/overall/accuracy", "eval/overall/score"


def update(best: BestModel, step: int, **metrics: float) -> bool:
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return best.update(step, named, lambda folder: (folder / "weights").write_text(str(step)) and None)


def kept(folder: Path) -> tuple[str, dict[str, object]]:
    return (folder / "best/weights").read_text(), json.loads((folder / "best/best.json").read_text())


def test_a_better_evaluation_replaces_the_kept_one_and_an_equal_one_does_not(tmp_path: Path) -> None:
    best = BestModel(RunDir(tmp_path), "auto", 0)
    found = [
        update(best, step, eval__overall__accuracy=value) for step, value in ((1, 0.5), (2, 0.5), (3, 0.7), (4, 0.6))
    ]
    assert found == [True, False, True, False]
    assert kept(tmp_path) == ("3", {"step": 3, "metric": ACCURACY, "value": 0.7})
    assert best.step == 3


def test_auto_takes_scores_where_nothing_is_right_or_wrong(tmp_path: Path) -> None:
    best = BestModel(RunDir(tmp_path), "auto", 0)
    assert update(best, 1, eval__overall__score=0.25, eval__one__score=0.9)
    assert kept(tmp_path)[1] == {"step": 1, "metric": SCORE, "value": 0.25}


def test_a_metric_by_name(tmp_path: Path) -> None:
    best = BestModel(RunDir(tmp_path), "eval/one/accuracy", 0)
    assert not update(best, 1, eval__overall__accuracy=1.0)  # no prompt of that data set
    assert update(best, 2, eval__overall__accuracy=0.0, eval__one__accuracy=0.1)


def test_a_run_that_continues_knows_what_was_best(tmp_path: Path) -> None:
    update(BestModel(RunDir(tmp_path), "auto", 0), 4, eval__overall__accuracy=0.6)
    again = BestModel(RunDir(tmp_path), "auto", 4)
    assert again.step == 4
    assert not update(again, 5, eval__overall__accuracy=0.6)
    assert update(again, 6, eval__overall__accuracy=0.7)


def test_what_was_best_after_the_checkpoint_is_not_known_to_the_run_that_continues(tmp_path: Path) -> None:
    """Those steps are run again, and may come out differently on a GPU."""
    update(BestModel(RunDir(tmp_path), "auto", 0), 30, eval__overall__accuracy=0.9)
    again = BestModel(RunDir(tmp_path), "auto", 10)
    assert again.step is None
    assert kept(tmp_path)[0] == "30"  # until there is another
    found = [update(again, step, eval__overall__accuracy=value) for step, value in ((20, 0.85), (30, 0.75), (40, 0.8))]
    assert found == [True, False, False]
    assert kept(tmp_path)[1]["step"] == 20


def test_an_update_that_fails_leaves_the_best_before(tmp_path: Path) -> None:
    best = BestModel(RunDir(tmp_path), "auto", 0)
    update(best, 1, eval__overall__accuracy=0.5)

    def full(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        best.update(2, {ACCURACY: 0.9}, full)
    assert kept(tmp_path)[0] == "1"
    assert update(BestModel(RunDir(tmp_path), "auto", 1), 2, eval__overall__accuracy=0.9)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best"]


def test_killed_between_the_renames_the_old_one_is_put_back(tmp_path: Path) -> None:
    update(BestModel(RunDir(tmp_path), "auto", 0), 1, eval__overall__accuracy=0.5)
    (tmp_path / "best").rename(tmp_path / ".best.old")
    assert BestModel(RunDir(tmp_path), "auto", 1).step == 1
    assert kept(tmp_path)[0] == "1"
