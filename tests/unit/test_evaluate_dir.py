"""The folder of an evaluation: which responses may be kept, and what is refused."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_maestro.config.evaluate import EvaluateConfig
from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.errors import ConfigError, DataError
from openrlhf_maestro.evaluation.log import AppendLog, read_rows, write_rows
from openrlhf_maestro.evaluation.results import Result, read_results, write_results
from openrlhf_maestro.trainer.evaluation_dir import (
    EvaluationDir,
    Wanted,
    check_responses,
    check_same_questions,
    files_digest,
    other_responses,
)


def config(*words: str) -> EvaluateConfig:
    return load_config(EvaluateConfig, ["--model", "m", "--data", "rows.jsonl", "--verdict.kind", "none", *words])


def prompt(number: int, **fields: Any) -> Prompt:
    text = f"What is {number}?"
    values: dict[str, Any] = {
        "id": f"r{number}",
        "text": text,
        "messages": ({"role": "user", "content": text},),
        "reference": f"It is {number}.",
        "datasource": "numbers",
        "source": "rows.jsonl",
        "row": number,
        "question": text,
    }
    return Prompt(**(values | fields))


def wanted(number: int, sample: int = 0, **fields: Any) -> Wanted:
    values: dict[str, Any] = {"rendered": f"<|user|>What is {number}?", "cluster": None, "seed": 7} | fields
    return Wanted(prompt(number), sample=sample, **values)


def response(one: Wanted, text: str = "5") -> dict[str, Any]:
    return one.row(text, truncated=False, tokens=2)


@pytest.fixture
def folder(tmp_path: Path) -> EvaluationDir:
    return EvaluationDir(tmp_path / "evaluation")


# ── what decides the responses ──


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--model", "other"], "model.name_or_path m, and now it is other"),
        (["--data", "others.jsonl"], "data.dataset rows.jsonl, and now it is others.jsonl"),
        (["--data.split", "validation"], "data.split test"),
        (["--data.input_template", "reasoning"], "data.input_template None"),
        (["--data.apply_chat_template", "false"], "data.apply_chat_template True"),
        (["--data.enable_thinking", "false"], "data.enable_thinking None"),
        (["--generation.temperature", "0.5"], "generation.temperature 0.8"),
        (["--generation.top_p", "0.9"], "generation.top_p 1.0"),
        (["--generation.max_new_tokens", "8"], "generation.max_new_tokens 1024"),
        (["--generation.seed", "1"], "generation.seed 42"),
        (["--vllm.param_dtype", "bf16"], "vllm.param_dtype auto"),
    ],
)
def test_another_option_that_decides_responses_is_refused_by_name(
    folder: EvaluationDir, words: list[str], option: str
) -> None:
    folder.start(config(), "m", "cpu")
    with pytest.raises(ConfigError, match=option.replace(".", r"\.")):
        folder.start(config(*words), "m", "cpu")


@pytest.mark.parametrize(
    "words",
    [
        ["--data.max_samples", "5"],
        ["--generation.n_samples_per_prompt", "4"],
        ["--verdict.kind", "reference"],
        ["--judge.model", "m", "--verdict.kind", "judge"],
        ["--vllm.gpu_memory_utilization", "0.5"],
        ["--data.label_key", "answer"],
    ],
)
def test_other_options_may_change(folder: EvaluationDir, words: list[str]) -> None:
    folder.start(config(), "m", "cpu")
    assert folder.start(config(*words), "m", "cpu") is None


def test_another_way_to_write_the_same_is_no_other_option(
    folder: EvaluationDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "others.jsonl").write_text("{}\n")
    (tmp_path / "m").mkdir()
    both = ("--data", "rows.jsonl, others.jsonl")
    folder.start(config(*both), "m", "cpu")
    folder.start(config(*both, "--vllm.param_dtype", "fp32"), "m", "cpu")
    folder.start(config("--data", f"./rows.jsonl,{tmp_path}/others.jsonl", "--model", "./m"), "./m", "cpu")
    with pytest.raises(ConfigError, match=r"data\.dataset \./rows\.jsonl,.*, and now it is others\.jsonl,rows\.jsonl"):
        folder.start(config("--data", "others.jsonl,rows.jsonl"), "m", "cpu")


def test_on_a_gpu_fp32_is_another_dtype_than_auto(folder: EvaluationDir) -> None:
    folder.start(config(), "m", "cuda")
    assert folder.start(config("--vllm.param_dtype", "bf16"), "m", "cuda") is None
    with pytest.raises(ConfigError, match=r"vllm\.param_dtype bf16, and now it is fp32"):
        folder.start(config("--vllm.param_dtype", "fp32"), "m", "cuda")


@pytest.mark.parametrize("text", ['{"a"', "[1]", "", "\ud800"])
def test_a_damaged_made_by_is_an_error_that_names_it_and_can_be_moved_aside(folder: EvaluationDir, text: str) -> None:
    folder.start(config(), "m", "cpu")
    (folder.path / "made_by.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"made_by\.json, which says how .* cannot be read: .*--run\.resume never"):
        folder.start(config(), "m", "cpu")
    assert folder.start(config("--run.resume", "never"), "m", "cpu") is not None


def test_another_device_and_a_model_that_was_trained_on_are_refused(folder: EvaluationDir, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(bytes(100_000))
    folder.start(config(), str(model), "cpu")
    folder.start(config(), str(model), "cpu")
    with pytest.raises(ConfigError, match=r"run\.device cpu, and now it is cuda"):
        folder.start(config(), str(model), "cuda")
    (model / "model.safetensors").write_bytes(bytes(50_000) + b"\1" * 50_000)
    with pytest.raises(ConfigError, match="the model's files"):
        folder.start(config(), str(model), "cpu")


def test_the_files_digest_is_of_contents_and_not_of_dates(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "b" / "notes.txt").write_text("not part of the model")
    assert files_digest(tmp_path / "a") == files_digest(tmp_path / "b") is not None
    (tmp_path / "b" / "config.json").write_text("{}")
    assert files_digest(tmp_path / "a") != files_digest(tmp_path / "b")
    assert files_digest(tmp_path / "none") is None


def test_beginning_anew_moves_the_earlier_one_aside(folder: EvaluationDir) -> None:
    folder.start(config(), "m", "cpu")
    folder.responses.write_text("earlier\n")
    moved = folder.start(config("--run.resume", "never", "--generation.seed", "1"), "m", "cpu")
    assert moved is not None and (moved / "responses.jsonl").read_text() == "earlier\n"
    assert not folder.responses.exists()


def test_a_folder_that_cannot_be_moved_aside_is_an_error(folder: EvaluationDir) -> None:
    folder.start(config(), "m", "cpu")
    date = time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))
    os.utime(folder.path / "made_by.json", (date, date))
    (folder.path.with_name("evaluation.20260102-030405") / "taken").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"output_dir: .*evaluation cannot be moved aside: Directory not empty"):
        folder.start(config("--run.resume", "never"), "m", "cpu")


def test_responses_of_unknown_origin_are_refused(folder: EvaluationDir) -> None:
    folder.path.mkdir()
    folder.responses.write_text("")
    with pytest.raises(ConfigError, match=r"not made_by\.json, which says how it was made"):
        folder.start(config(), "m", "cpu")


# ── the responses ──


def test_a_response_has_the_columns_that_are_promised() -> None:
    one = wanted(3, 1, cluster="story 1")
    assert one.row("text", truncated=True, tokens=9) == {
        "key": "r3#1",
        "id": "r3",
        "sample": 1,
        "datasource": "numbers",
        "cluster": "story 1",
        "question": "What is 3?",
        "prompt": "<|user|>What is 3?",
        "reference": "It is 3.",
        "response": "text",
        "truncated": True,
        "response_tokens": 9,
        "seed": 7,
    }


def test_responses_that_are_there_are_found(tmp_path: Path) -> None:
    rows = [response(wanted(1)), response(wanted(9))]
    assert list(check_responses(rows, [wanted(1), wanted(2)], tmp_path)) == ["r1#0", "r9#0"]


@pytest.mark.parametrize("change", [{"rendered": "What is 1?"}, {"seed": 8}])
def test_a_response_to_another_prompt_is_refused_with_its_row(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"r1#0 was made for another prompt than row 1 of rows\.jsonl gives now"):
        check_responses([response(wanted(1))], [wanted(1, **change)], tmp_path)


def test_a_row_that_is_no_response_is_refused_with_its_line(tmp_path: Path) -> None:
    broken = {name: value for name, value in response(wanted(2)).items() if name != "response"}
    with pytest.raises(DataError, match="line 2 is not a response: it has no `response`"):
        check_responses([response(wanted(1)), broken], [], tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("key", ["a"], r'\["a"\]'), ("response", 5, "5"), ("truncated", "no", '"no"'), ("seed", None, "null")],
)
def test_a_damaged_response_is_refused_with_its_line(tmp_path: Path, name: str, value: Any, shown: str) -> None:
    rows = [response(wanted(1)), response(wanted(2)) | {name: value}]
    with pytest.raises(DataError, match=f"line 2 is not a response: its `{name}` cannot be {shown}"):
        check_responses(rows, [], tmp_path / "responses.jsonl")


def test_the_file_ends_in_the_order_of_the_data_with_what_the_data_says_now(folder: EvaluationDir) -> None:
    folder.path.mkdir()
    both = [wanted(1), wanted(2)]
    found = {row["key"]: row for row in (response(wanted(5)), response(both[1], "b"), response(both[0], "a"))}
    found["r1#0"] = found["r1#0"] | {"reference": "as it was then"}
    rows = folder.order_responses(both, found)
    assert [(row["key"], row["response"], row["reference"]) for row in rows] == [
        ("r1#0", "a", "It is 1."),
        ("r2#0", "b", "It is 2."),
    ]
    assert [row["key"] for row in read_rows(folder.responses)] == ["r1#0", "r2#0", "r5#0"]


def test_the_other_models_responses_are_checked_for_being_to_the_same_questions(tmp_path: Path) -> None:
    write_rows(tmp_path / "responses.jsonl", [response(wanted(1), "theirs"), response(wanted(2), "x")])
    others = other_responses(tmp_path)
    assert others["r1#0"]["response"] == "theirs"
    check_same_questions(others, [wanted(1)], "other")
    with pytest.raises(DataError, match="other has no response r3#0"):
        check_same_questions(others, [wanted(1), wanted(3)], "other")
    with pytest.raises(DataError, match="other has no response r1#1"):
        check_same_questions(others, [wanted(1, 1)], "other")
    elsewhere = Wanted(prompt(2, question="What else?"), "<|user|>What else?", 0, None, 7)
    with pytest.raises(DataError, match=r"the response r2#0 in other is to another question than row 2 of rows\.jsonl"):
        check_same_questions(others, [elsewhere], "other")


@pytest.mark.parametrize(
    ("metadata", "cluster"),
    [
        ({"cluster": "a"}, "a"),
        ({"meta": {"cluster": 3}}, "3"),
        ({"cluster": "a", "meta": {"cluster": "b"}}, "a"),
        ({"meta": {"other": 1}}, None),
        ({"meta": "text"}, None),
        ({"meta": None}, None),
        ({}, None),
    ],
)
def test_the_cluster_is_a_column_or_in_meta(metadata: dict[str, Any], cluster: str | None) -> None:
    assert prompt(1, metadata=metadata).cluster() == cluster


# ── lines on disk ──

TEXTS = st.text() | st.sampled_from(["\u2028", "\x85", "\ud800", "\r\n", "\x00", '"\\'])


@given(texts=st.lists(TEXTS, max_size=5))
def test_what_is_appended_is_read_back_by_any_reader_of_lines(texts: list[str], tmp_path_factory: Any) -> None:
    file = tmp_path_factory.mktemp("log") / "rows.jsonl"
    with AppendLog(file) as log:
        for text in texts:
            log.append({"text": text})
    assert [row["text"] for row in read_rows(file)] == texts
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == texts


def test_a_torn_last_line_is_cut_off_before_the_next_is_written(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": 2')
    with AppendLog(file) as log:
        assert log.rows == [{"a": 1}]
        log.append({"a": 3})
    assert file.read_bytes() == b'{"a": 1}\n{"a": 3}\n'


@pytest.mark.parametrize("line", [b"[1]", b"nonsense", b"", b"\xff"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2 is damaged"):
        read_rows(tmp_path / "rows.jsonl")


def test_results_are_read_back(tmp_path: Path) -> None:
    results = [
        Result("r1#0", "r1", 0, "d", "a\u2028story", True, 1.0, (True, None, True)),
        Result("r2#0", "r2", 0, "d", None, None, 0.5),
    ]
    write_results(tmp_path / "results.jsonl", results)
    assert read_results(tmp_path / "results.jsonl") == results
