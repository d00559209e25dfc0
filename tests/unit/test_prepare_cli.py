"""The command `maestro prepare`: what it prints, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openrlhf_maestro.cli.main import main


def rows(path: Path, count: int) -> Path:
    lines = [{"question": f"Why is {n} odd?", "answer": f"Because of {n} reasons."} for n in range(count)]
    lines += [{"question": "How many?", "answer": "7"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tombench(path: Path, count: int) -> Path:
    def row(n: int) -> dict[str, str]:
        options = {f"OPTION-{letter}": f"{letter.lower()}{n}" for letter in "ABCD"}
        return {"STORY": f"s{n // 2}", "QUESTION": f"q{n}", **options, "答案\nANSWER": "A", "能力\nABILITY": "x"}

    path.write_text("".join(json.dumps(row(n)) + "\n" for n in range(count)))
    return path


def test_prints_what_was_read_dropped_and_kept_the_licence_and_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = rows(tmp_path / "in.jsonl", 8), tmp_path / "out"
    assert main(["prepare", "--dataset", "webinstruct", "--source", str(source), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    table = {
        cells[0].strip(): cells[1].strip()
        for cells in (line.strip("│").split("│") for line in printed.splitlines() if line.startswith("│"))
    }
    assert table == {
        "read": "9",
        "dropped: trivial reference": "1",
        "train: train.jsonl": "4",
        "validation: validation.jsonl": "2",
        "test: test.jsonl": "2",
        "kept": "8",
    }
    assert "licence: Apache-2.0" in printed and printed.endswith(f"{out}/\n")
    assert "Fewer rows are left than the splits should have: 2000/1000/1000 (train/validation/test)." in printed


def test_tombench_s_wish_is_printed_with_a_training_split_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tombench(tmp_path / "task.jsonl", 10)
    command = ["prepare", "--dataset", "tombench", "--source", str(source)]
    assert main([*command, "--out", str(tmp_path / "both")]) == 0
    assert "never trained on. The training split is for comparison" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "test"), "--sizes", "{test: 1.0}"]) == 0
    assert "Note:" not in capsys.readouterr().out


def test_a_name_in_brackets_is_printed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", "--dataset=custom", f"--source={rows(tmp_path / 'in.jsonl', 3)}", f"--out={tmp_path / 'out'}"]
    options = ["--input_key=question", "--label_key=answer", "--sizes={test: 1.0}", "--datasource=[/b] mine"]
    assert main([*command, *options]) == 0
    assert "[/b] mine, seed 42" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "`dataset` is not set"),
        (["--dataset=tombench"], "--source the folder with its files from https://github.com/zhchen18/ToMBench"),
        (["--dataset=webinstruct", "--source=/nothing"], "there is no file or folder /nothing"),
        (["--dataset=webinstruct", "--langauges=en-fr"], "Did you mean"),
        (["--dataset=mmlu"], "mmlu"),
    ],
)
def test_errors_are_one_paragraph_and_exit_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *arguments]) == 2
    printed = capsys.readouterr().err
    assert part in printed and printed.startswith("maestro: ") and "Traceback" not in printed


def test_a_folder_with_files_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["prepare", "--dataset=webinstruct", "--source=/nothing", f"--out={tmp_path}"]) == 2
    assert "has files already (notes.txt)" in capsys.readouterr().err


def test_a_configuration_file_may_hold_it_all(tmp_path: Path) -> None:
    source = rows(tmp_path / "in.jsonl", 10)
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"dataset: custom\nsource: {source}\nout: {tmp_path / 'out'}\nsizes: {{train: 0.5, test: 0.5}}\n"
        "custom: {input_key: question, label_key: answer}\n"
    )
    assert main(["prepare", "--config", str(config)]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["card.yaml", "test.jsonl", "train.jsonl"]
