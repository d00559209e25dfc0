"""docs/extending.md, its training run: the page's files and commands as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"Save this as `([\w.]+)`[^`]*```\w+\n(.*?)```", PAGE, re.DOTALL))


def commands(section: str) -> str:
    """The shell commands of a section of the page."""
    text = PAGE.partition(f"## {section}")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))


def run(command: str, folder: Path) -> str:
    done = subprocess.run(["bash", "-ec", command], cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_reward_is_trained_with_and_read_back(tmp_path: Path) -> None:
    """In a folder that looks like the repository's root; the models are the repository's."""
    for name in ("examples", "assets"):
        (ROOT / name).mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    assert os.access(tmp_path / ".venv" / "bin" / "maestro", os.X_OK)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    run(commands("3. Train with it"), tmp_path)
    printed = run(commands("4. Read what it did"), tmp_path).splitlines()
    rows = pq.read_table(tmp_path / "runs/my_reward/rollouts/step_000001.parquet").to_pylist()
    assert len(printed) == 5 and printed[0].startswith(str(rows[0]["raw_overlap"]))
    assert len(list((tmp_path / "runs/my_reward/rollouts").iterdir())) == 5
    for row in rows:
        answer = re.search(r"<answer>(.*?)</answer>", row["response"], re.DOTALL)
        if answer is None or row["raw_format"] == 0:
            continue
        words = set(row["reference"].lower().split())
        expected = len(words & set(answer[1].lower().split())) / len(words)
        assert row["raw_overlap"] == pytest.approx(expected)
    assert (tmp_path / "runs/my_reward/report.html").is_file()
