"""The shipped configurations: the paper's tables 7 and 8 in its presets, and in what presets and baselines differ."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from openrlhf_maestro.config import differences as module
from openrlhf_maestro.config.components import LengthComponent
from openrlhf_maestro.config.differences import PAGE, Difference, differences, load_configs, main, markdown, renewed
from openrlhf_maestro.config.load import load_config, to_yaml
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
PAPER, BASELINES = CONFIGS / "paper", CONFIGS / "baselines"

DATA = ("natural_reasoning", "general_thoughts", "webinstruct", "ss_gen", "tombench", "emobench", "opus_books")
MODELS = {
    "qwen3_8b": ("Qwen/Qwen3-8B", "Skywork/Skywork-Reward-V2-Qwen3-8B"),
    "llama31_8b": ("meta-llama/Llama-3.1-8B-Instruct", "Skywork/Skywork-Reward-V2-Llama-3.1-8B"),
}

# Tables 7 and 8, written down anew: what holds for every preset ...
TABLES: dict[str, Any] = {
    "objective.loss_type": "dr_grpo",
    "objective.importance_sampling_level": "sequence",
    "actor.eps_clip_low_high": (0.2, 0.2),
    "objective.top_entropy_quantile": 0.2,
    "objective.entropy_mask": "trl",
    "objective.mask_truncated": True,
    "objective.scale_rewards": "group",
    "objective.kl_in": "loss",
    "objective.ref_mixup_alpha": 0.6,
    "algo.kl.init_coef": 0.1,
    "algo.kl.estimator": "k3",
    "algo.advantage.is_correction_level": "off",
    "actor.adam.lr": 1e-5,
    "actor.adam.betas": (0.9, 0.999),
    "actor.adam.weight_decay": 0.0,
    "actor.max_norm": 1.0,
    "actor.lr_scheduler": "linear",
    "actor.lr_warmup_ratio": 0.0,
    "train.num_episodes": 2,
    "train.max_epochs": 1,
    "train.batch_size": 90,
    "rollout.batch_size": 18,
    "rollout.n_samples_per_prompt": 5,
    "rollout.temperature": 0.8,
    "conductor.kind": "conductor",
    "conductor.lr": 5e-5,
    "conductor.entropy_coef": 1e-3,
    "conductor.temperature": 1.0,
    "conductor.learn_temperature": True,
    "conductor.min_prob": 1e-4,
    "ds.zero_stage": 3,
    "ds.param_dtype": "bf16",
}
# ... and what does not.
COMPLETION = {"natural_reasoning": 2048, "ss_gen": 2048, "tombench": 512, "emobench": 512}
REF_SYNC_STEPS = {"ss_gen": 12}
UPDATE_STEPS = {"ss_gen": 6}
NORMALISATIONS = {
    "format": "none",
    "perplexity": "group_rank",
    "entropy": "group_rank",
    "length": "none",
    "preference": "group_rank",
}


def load(file: Path, *argv: str) -> MaestroConfig:
    return load_config(MaestroConfig, ["--config", str(file), *argv])


def value(config: MaestroConfig, name: str) -> Any:
    found: Any = config
    for part in name.split("."):
        found = getattr(found, part)
    return found


# ── every file ──


SHIPPED = sorted(CONFIGS.rglob("*.yaml"))
PARTS = [file for file in SHIPPED if file.parent.name == "base"]


@pytest.mark.parametrize("file", sorted(set(SHIPPED) - set(PARTS)), ids=lambda file: str(file.relative_to(CONFIGS)))
def test_shipped_configurations_load_and_set_nothing_that_has_no_effect(file: Path) -> None:
    assert load(file).notes() == []


@pytest.mark.parametrize("file", PARTS, ids=lambda file: file.stem)
def test_parts_are_complete_but_for_model_and_data(file: Path) -> None:
    missing = ["--data.prompt_dataset=rows.jsonl"]
    missing += [f"--{name}.model_name_or_path=model" for name in ("actor", "reward")] if file.stem == "common" else []
    assert load(file, *missing).notes() == []
    with pytest.raises(ConfigError, match=r"data\.prompt_dataset. is not set"):
        load(file)


def test_the_quick_start_is_among_the_shipped_configurations() -> None:
    assert CONFIGS / "quick_start.yaml" in SHIPPED


def test_there_is_a_preset_for_each_model_and_data_set_and_each_baseline() -> None:
    assert {file.stem for file in PAPER.glob("*.yaml")} == {f"{model}_{data}" for model in MODELS for data in DATA}
    assert {file.stem for file in BASELINES.glob("*.yaml")} == {"equal", "random", "nover", "em_grpo", "judge"}


def test_every_value_of_the_presets_has_its_source() -> None:
    for file in (PAPER / "base").glob("*.yaml"):
        for line in file.read_text(encoding="utf-8").splitlines():
            setting = re.match(r" +(?:- )?\{?[a-z_]+: (?!#)", line)
            if (
                setting
                and "as the two below" not in line
                and not re.match(r" +(?:- kind:|label_key|datasource_key)", line)
            ):
                assert re.search(r"# (?:Table [78]|Eq\. 4|appendix|paper|TRL|ours)", line), f"{file.name}: {line}"


# ── the paper's values ──


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", MODELS)
def test_presets_have_the_values_of_tables_7_and_8(model: str, data: str) -> None:
    config = load(PAPER / f"{model}_{data}.yaml")
    assert {name: value(config, name) for name in TABLES} == TABLES
    assert (config.actor.model_name_or_path, config.reward.model_name_or_path) == MODELS[model]
    assert config.run.name == f"{model}_{data}" and config.data.prompt_dataset == f"data/{data}/train.jsonl"
    completion = COMPLETION.get(data, 1024) if model == "qwen3_8b" else 1024
    assert config.rollout.max_new_tokens == completion
    assert config.objective.ref_sync_steps == REF_SYNC_STEPS.get(data, 6)
    assert config.conductor.update_steps == UPDATE_STEPS.get(data, 3)
    assert {part.label: part.normalisation for part in config.rewards.components} == NORMALISATIONS
    length = config.component_of_kind("length")
    assert isinstance(length, LengthComponent) and length.limits(data, completion) == (completion / 2, completion)


def test_the_paper_s_values_are_written_out_even_where_they_are_our_defaults() -> None:
    """So that a preset stays the paper's when a default changes."""
    config = load(PAPER / "qwen3_8b_webinstruct.yaml")
    for name in (*TABLES, "rollout.max_new_tokens", "objective.ref_sync_steps", "conductor.update_steps"):
        section, _, option = name.rpartition(".")
        assert option in value(config, section).model_fields_set, name
    assert all("normalisation" in part.model_fields_set for part in config.rewards.components)


def test_a_preset_fits_a_node_of_eight_gpus_and_its_sizes_divide() -> None:
    config = load(PAPER / "qwen3_8b_natural_reasoning.yaml")
    engines = config.vllm.num_engines * config.vllm.tensor_parallel_size
    assert config.train.colocate_actor_ref and config.actor_world_size == config.ref_world_size == 6
    assert config.actor_world_size + engines + config.reward_world_size == 8
    assert config.responses_per_step == 90 == 15 * config.actor_world_size
    assert 90 % (config.actor_world_size * config.train.micro_batch_size) == 0


# ── baselines ──


CONDUCTORS = {
    "equal": ("equal", None),
    "random": ("random", None),
    "nover": ("single", "perplexity"),
    "em_grpo": ("single", "neg_entropy"),
    "judge": ("single", "judge"),
}


@pytest.mark.parametrize("name", CONDUCTORS)
def test_a_baseline_differs_from_its_preset_in_what_defines_it_alone(name: str) -> None:
    preset, baseline = load(PAPER / "qwen3_8b_natural_reasoning.yaml"), load(BASELINES / f"{name}.yaml")
    assert (baseline.conductor.kind, baseline.conductor.component) == CONDUCTORS[name]
    allowed = {"run.name", "conductor.kind", "conductor.component", "rewards.components"}
    allowed |= {"rewards.components[perplexity].gate"} if name == "nover" else set()
    assert {row.option for row in differences({"preset": preset, "baseline": baseline})} <= allowed
    added = [part for part in baseline.rewards.components if part.label not in preset.component_names]
    assert [part.kind for part in added] == (
        [name] if name == "judge" else ["neg_entropy"] if name == "em_grpo" else []
    )


@pytest.mark.parametrize(("name", "label"), [("nover", "perplexity"), ("judge", "judge")])
def test_perplexity_alone_and_the_judge_count_in_the_right_format_only(name: str, label: str) -> None:
    (component,) = (part for part in load(BASELINES / f"{name}.yaml").rewards.components if part.label == label)
    assert component.gate == "format"


# ── the table of differences ──


def small(**sections: Any) -> MaestroConfig:
    return MaestroConfig.model_validate(
        {"actor": {"model_name_or_path": "policy"}, "data": {"prompt_dataset": "rows.jsonl"}}
        | {"rewards": {"components": [{"kind": "format"}, {"kind": "length", "l_min": 1}]}}
        | sections
    )


def test_differences_by_hand() -> None:
    other = small(
        actor={"model_name_or_path": "policy", "adam": {"lr": 1e-3}},
        conductor={"kind": "fixed", "weights": {"format": 1, "long": 2}},
        rewards={"components": [{"kind": "format"}, {"kind": "length", "name": "long", "l_min": 2}]},
    )
    third = small(rewards={"components": [{"kind": "length", "l_min": 3}, {"kind": "format"}]})
    assert differences({"one": small(), "other": other, "third": third}) == [
        Difference("actor.adam.lr", ("1.0e-05", "0.001", "1.0e-05")),
        Difference("rewards.components", ("[format, length]", "[format, long]", "[length, format]")),
        Difference("rewards.components[length].l_min", ("1", "-", "3")),
        Difference("conductor.kind", ("conductor", "fixed", "conductor")),
        Difference("conductor.weights", ("null", "{format: 1.0, long: 2.0}", "null")),
    ]
    assert differences({"one": small(), "again": small()}) == differences({"one": small()}) == []


def test_a_table_in_markdown() -> None:
    assert markdown({"one": small(), "other": small(data={"prompt_dataset": "a|b.jsonl"})}) == (
        "| option | one | other |\n| --- | --- | --- |\n| `data.prompt_dataset` | `rows.jsonl` | `a\\|b.jsonl` |\n"
    )


def test_columns_are_named_by_what_tells_the_files_apart(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("big_rows_a.yaml", "big_rows_ab.yaml", "big_table.yaml")]
    again = tmp_path / "folder" / "big_table.yaml"
    again.parent.mkdir()
    for file in (*files, again):
        file.write_text(to_yaml(small()))
    assert list(load_configs(files[:2])) == ["a", "ab"]
    assert list(load_configs(files)) == ["rows_a", "rows_ab", "table"]
    assert list(load_configs(files[2:])) == ["big_table"]
    assert list(load_configs([files[2], again])) == [str(files[2]), str(again)]


def test_the_table_of_the_paper_s_presets_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`pytest -s` shows it."""
    files = sorted(PAPER.glob("*.yaml"))
    main([str(file) for file in files])
    table = capsys.readouterr().out
    print(table)
    rows = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in table.splitlines() if "│" in line]
    found = {cells[0]: dict(zip([file.stem for file in files], cells[1:], strict=True)) for cells in rows}
    assert set(found) == {
        "run.name", "actor.model_name_or_path", "reward.model_name_or_path", "data.prompt_dataset",
        "rollout.max_new_tokens", "conductor.update_steps", "objective.ref_sync_steps",
    }  # fmt: skip
    for model in MODELS:
        for data in DATA:
            assert found["objective.ref_sync_steps"][f"{model}_{data}"] == str(REF_SYNC_STEPS.get(data, 6))


def test_the_tables_of_the_page_are_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- differences: ") == page.count("<!-- end -->") == 4
    assert page == renewed(page), "run `python -m openrlhf_maestro.config.differences`"


def test_without_files_the_tables_of_the_page_are_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "presets.md"
    text = PAGE.read_text(encoding="utf-8")
    page.write_text(re.sub(r"^\| `rollout.*\n", "", text, flags=re.MULTILINE), encoding="utf-8")
    assert page.read_text(encoding="utf-8") != text
    monkeypatch.setattr(module, "PAGE", page)
    main([])
    assert page.read_text(encoding="utf-8") == text
