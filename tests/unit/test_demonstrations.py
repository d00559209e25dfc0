"""What supervised fine-tuning imitates: rows with their templates, or an error that names the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openrlhf_maestro.config.sft import SftDataSection
from openrlhf_maestro.data.demonstrations import load_demonstrations
from openrlhf_maestro.errors import ConfigError, DataError


def load(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_demonstrations(SftDataSection(dataset=str(file), **options))


def test_rows_are_taken_as_they_are_without_templates(tmp_path: Path) -> None:
    rows = [{"prompt": "a {} b", "response": "c"}, {"prompt": "d", "response": "e", "other": 1}]
    assert load(tmp_path, rows) == [{"prompt": "a {} b", "response": "c"}, {"prompt": "d", "response": "e"}]


def test_reference_answers_are_wrapped(tmp_path: Path) -> None:
    answer = tmp_path / "answer.txt"
    answer.write_text("<think>\n\n</think>\n\n<answer>\n{}\n</answer>\n")
    rows = [{"prompt": "Why {}?", "reference": "So."}]
    found = load(tmp_path, rows, output_key="reference", input_template="Q: {}", output_template=str(answer))
    assert found == [{"prompt": "Q: Why {}?", "response": "<think>\n\n</think>\n\n<answer>\nSo.\n</answer>"}]


def test_chat_messages_take_no_template(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "a"}], "response": [{"role": "assistant", "content": "b"}]}
    assert load(tmp_path, [row]) == [row]
    with pytest.raises(DataError, match="row 1 holds chat messages"):
        load(tmp_path, [row], input_template="Q: {}")


def test_at_most_max_samples(tmp_path: Path) -> None:
    assert len(load(tmp_path, [{"prompt": "a", "response": "b"}] * 5, max_samples=2)) == 2


def test_the_rows_of_the_split(tmp_path: Path) -> None:
    rows = [{"prompt": name, "response": "r", "split": name} for name in ("train", "test")]
    assert load(tmp_path, rows, dataset_split="test") == [{"prompt": "test", "response": "r"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, r"no column `response`; the columns are prompt\. Set data\.output_key"),
        ({"question": "a", "response": "b"}, r"no column `prompt`.*Set data\.input_key"),
        ({"prompt": " ", "response": "b"}, r"row 1: `prompt` holds no text"),
        ({"prompt": "a", "response": None}, r"row 1: `response` holds no text"),
        ({"prompt": "a", "response": 3}, r"row 1: `response` holds no text"),
        ({"prompt": "a", "response": [{"role": "assistant", "content": "b"}]}, r"row 1: .* a text and chat messages"),
    ],
)
def test_what_cannot_be_imitated_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, [row])


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"template .*absent\.txt"):
        load(tmp_path, [{"prompt": "a", "response": "b"}], output_template="absent.txt")
