"""Options of `maestro evaluate`: shorthands, the verdict that follows from them, and what is refused before loading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openrlhf_maestro.cli.main import main
from openrlhf_maestro.config.evaluate import EvaluateConfig
from openrlhf_maestro.config.load import load_config, to_yaml
from openrlhf_maestro.config.verdicts import JudgeVerdictSection
from openrlhf_maestro.errors import ConfigError

TASKS = ["--model", "bundled:policy", "--data", "bundled:tasks"]


def load(*words: str) -> EvaluateConfig:
    return load_config(EvaluateConfig, words)


def test_model_and_data_have_short_names() -> None:
    config = load("--model", "some/model", "--data=rows.jsonl", "--verdict.kind", "none")
    assert (config.model.name_or_path, config.data.dataset) == ("some/model", "rows.jsonl")


def test_the_folder_is_named_after_the_evaluation() -> None:
    assert load(*TASKS).folder == Path("evaluations/evaluation")
    assert load(*TASKS, "--run.name", "base").folder == Path("evaluations/base")
    assert load(*TASKS, "--output_dir", "x/y").folder == Path("x/y")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ([], "rule"),
        (["--judge.model", "m"], "judge"),
        (["--judge.model", "m", "--verdict.against", "other"], "pairwise"),
        (["--judge.model", "m", "--verdict.kind", "rule"], "rule"),
        (["--verdict.kind", "reference"], "reference"),
    ],
)
def test_the_verdict_follows_from_what_is_given(words: list[str], kind: str) -> None:
    assert load(*TASKS, *words).kind == kind


REFUSED = [
    (["--data", "rows.jsonl"], r"bundled:tasks only, and data\.dataset is rows\.jsonl.*--judge\.model"),
    (["--data", "rows.jsonl", "--verdict.kind", "rule"], "verdicts by rule exist for bundled:tasks only"),
    (["--verdict.kind", "judge"], r"a verdict by a judge needs its name at the endpoint: set judge\.model"),
    (["--verdict.kind", "pairwise", "--judge.model", "m"], r"set verdict\.against to its folder"),
    (["--verdict.against", "other"], r"set judge\.model"),
    (
        ["--verdict.kind", "reference", "--data.label_key", "null"],
        r"reference needs reference answers.*data\.label_key",
    ),
    (["--judge.model", "m", "--data.label_key", "null"], r"judge needs reference answers"),
    (["--judge.model", "m", "--judge.votes", "2"], "an even number has no majority"),
    (["--data.max_len", "100", "--generation.max_new_tokens", "100"], r"leaves no room for a prompt"),
    (["--data.input_template", "no place"], "to put the prompt in"),
    (["--judge.base_url", "http://169.254.169.254/v1", "--judge.model", "m"], "link-local"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_combinations_that_cannot_work_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(*TASKS, *words)


def test_pairwise_and_none_need_no_references() -> None:
    options = ["--data.label_key", "null", "--data", "rows.jsonl"]
    none = load(*TASKS, *options, "--verdict.kind", "none")
    pairwise = load(*TASKS, *options, "--verdict.against", "other", "--judge.model", "m")
    assert (none.kind, none.needs_reference) == ("none", False)
    assert (pairwise.kind, pairwise.needs_reference) == ("pairwise", False)


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["--judge.votes", "5"], "judge.votes has no effect with verdict.kind: rule."),
        (["--reference.metric", "chrf"], "reference.metric has no effect with verdict.kind: rule."),
        (
            ["--verdict.kind", "rule", "--verdict.against", "x"],
            "verdict.against has no effect with verdict.kind: rule.",
        ),
        (
            ["--verdict.kind", "reference", "--reference.metric", "exact", "--reference.threshold", "0.5"],
            "reference.threshold has no effect with reference.metric: exact.",
        ),
        (
            ["--judge.model", "m", "--judge.temperature", "0"],
            "judge.votes are all the same with judge.temperature: 0: one would do.",
        ),
        (
            ["--generation.temperature", "0", "--generation.n_samples_per_prompt", "4"],
            "generation.n_samples_per_prompt are all the same with generation.temperature: 0.",
        ),
        (
            ["--judge.model", "m", "--judge.seed", "null"],
            "judge.votes are equal requests with judge.seed: null: a cache may answer them as one.",
        ),
        (
            ["--generation.temperature", "0", "--generation.seed", "7"],
            "generation.seed has no effect with generation.temperature: 0.",
        ),
        (
            ["--generation.temperature", "0", "--generation.top_p", "0.5"],
            "generation.top_p has no effect with generation.temperature: 0.",
        ),
        (
            ["--data.enable_thinking", "true", "--data.apply_chat_template", "false"],
            "data.enable_thinking has no effect with data.apply_chat_template: false.",
        ),
    ],
)
def test_options_without_effect_are_noted(words: list[str], note: str) -> None:
    assert load(*TASKS, *words).notes() == [note]


def test_without_them_there_is_no_note() -> None:
    assert load(*TASKS).notes() == []
    assert load(*TASKS, "--judge.model", "m", "--judge.prompt", "lenient").notes() == []
    assert load(*TASKS, "--judge.model", "m", "--judge.seed", "null", "--judge.votes", "1").notes() == []
    assert load(*TASKS, "--generation.temperature", "0").notes() == []


def test_the_resolved_configuration_is_one_again(tmp_path: Path) -> None:
    config = load(*TASKS, "--judge.model", "m", "--judge.by_datasource", "{a: {prompt: creative}}")
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load("--config", str(file)) == config


def test_the_settings_that_make_verdicts_comparable_hold_no_address() -> None:
    words = ["--judge.model", "m", "--judge.base_url", "http://127.0.0.1:1/v1", "--judge.extra_body", "{secret: 1}"]
    assert load(*TASKS, *words).verdict_settings() == {
        "kind": "judge",
        "model": "m",
        "prompt": "strict",
        "by_datasource": {},
        "votes": 3,
        "temperature": 0.7,
    }
    assert load(*TASKS).verdict_settings() == {"kind": "rule"}
    assert load(*TASKS, "--verdict.kind", "reference").verdict_settings() == {
        "kind": "reference",
        "metric": "f1",
        "threshold": None,
    }


def test_a_data_set_without_a_prompt_of_its_own_has_the_general_one() -> None:
    section = JudgeVerdictSection.model_validate({"prompt": "lenient", "by_datasource": {"a": {"prompt": "creative"}}})
    assert (section.prompt_for("a"), section.prompt_for("b")) == ("creative", "lenient")


# ── found before a model is loaded, by the command itself ──


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["evaluate", *words])
    return code, capsys.readouterr().err


@pytest.fixture
def data(tmp_path: Path) -> Any:
    """`data(*rows)`: a file of them."""

    def write(*rows: dict[str, Any]) -> str:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "prompt": f"What is {number}?", "reference": f"It is {number}."} | fields


def test_a_row_without_a_reference_stops_and_is_named(data: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = data(row(1), row(2, reference=" "), row(3))
    code, said = command(capsys, "--model", "m", "--data", file, "--verdict.kind", "reference")
    assert code == 2 and "1 empty reference" in said and f"first {file} row 2" in said


def test_two_rows_with_one_id_stop_and_are_named(data: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = data(row(1), row(2), row(1))
    code, said = command(capsys, "--model", "m", "--data", file, "--verdict.kind", "reference")
    assert code == 2 and f"row 1 of {file} and row 3 of {file} have the same id, r1" in said


def test_a_folder_without_a_model_is_refused(data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = command(capsys, "--model", str(tmp_path), "--data", data(row(1)), "--verdict.kind", "none")
    assert code == 2 and f"{tmp_path} is not a model folder (it has no config.json)" in said


def test_the_judges_key_and_prompt_are_checked_first(
    data: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    words = ["--model", "no/model", "--data", data(row(1)), "--judge.model", "m", "--judge.api_key_env"]
    code, said = command(capsys, *words, "SOME_KEY")
    assert code == 2 and "the environment variable SOME_KEY, its key, is not set" in said
    code, said = command(capsys, *words, "null", "--judge.prompt", "strickt")
    assert code == 2 and "strickt is none of strict, lenient, creative" in said
    code, said = command(capsys, *words, "null", "--judge.by_datasource", "{maths: {prompt: lenient}}")
    assert code == 2 and "by_datasource names maths, and no row is of that data set. There are default." in said


def test_a_folder_to_compare_with_that_is_no_evaluation_is_refused(
    data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "no/model", "--data", data(row(1)), "--judge.model", "m", "--judge.api_key_env", "null"]
    code, said = command(capsys, *words, "--verdict.against", str(tmp_path))
    assert code == 2 and "is not the folder of an evaluation (it has no responses.jsonl)" in said


def test_compare_takes_over_the_whole_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = command(capsys, "--compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert code == 2 and "results.jsonl cannot be read" in said


def test_the_plain_parts_load_no_torch() -> None:
    code = (
        "import sys; import openrlhf_maestro.evaluation.tables, openrlhf_maestro.cli.evaluate;"
        " print(sorted({'torch', 'transformers', 'openai', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
