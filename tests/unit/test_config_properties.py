"""Properties of loading that hold for any values: round trips, and errors of one kind only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openrlhf_maestro.config import yaml12
from openrlhf_maestro.config.fields import options
from openrlhf_maestro.config.load import ConfigError, load_config, to_yaml
from openrlhf_maestro.config.schema import MaestroConfig

BASE = [
    "--actor.model_name_or_path=policy",
    "--actor.num_gpus_per_node=6",
    "--ref.num_gpus_per_node=6",
    "--data.prompt_dataset=rows.jsonl",
    "--rewards.components=[{kind: format}, {kind: length}]",
]
NAMES = [known.name for known in options(MaestroConfig)]

# Derandomized: the same examples on every machine and no database of failures in the checkout.
PROPERTY = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

TRICKY = st.sampled_from(
    ["no", "1e5", "null", "~", "2024-01-01", "010", "1:30", "0x1f", "yes", "-", ".5", "=", "<<", "1_0"]
)
TEXT = TRICKY | st.text()
# JSON escapes characters beyond U+FFFF as two surrogates, which YAML does not join.
KEYS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]))
POSITIVE = st.floats(min_value=1e-300, allow_infinity=False)
VALUES = {
    "run.name": st.text(min_size=1) | TRICKY,
    "run.dir": TEXT.filter(lambda text: text != "null") | st.none(),
    "data.prompt_split": TEXT,
    "train.seed": st.integers(min_value=0, max_value=2**63),
    "run.max_steps": st.integers(min_value=-1, max_value=2**31),
    "train.full_determinism_enable": st.booleans(),
    "actor.adam.lr": POSITIVE,
    "actor.adam.betas": st.tuples(POSITIVE, POSITIVE),
    "conductor.weights": st.none() | st.dictionaries(KEYS, st.floats(allow_nan=False, allow_infinity=False)),
    "run.max_logprob_diff": st.none() | POSITIVE,
}
OVERRIDES = st.fixed_dictionaries({}, optional=VALUES)


def written(name: str, value: object) -> str:
    """A value as a user would write it: text as it stands, the rest as JSON, which is YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def read(config: MaestroConfig, name: str) -> object:
    value: object = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


@given(OVERRIDES, st.booleans())
@PROPERTY
def test_every_override_arrives_as_it_was_written(overrides: dict[str, object], equals: bool) -> None:
    argv = list(BASE)
    for name, value in overrides.items():
        text = written(name, value)
        argv += [f"--{name}={text}"] if equals or text.startswith("--") else [f"--{name}", text]
    config = load_config(MaestroConfig, argv)
    for name, value in overrides.items():
        assert read(config, name) == value


@given(OVERRIDES)
@PROPERTY
def test_the_written_configuration_loads_equal(tmp_path: Path, overrides: dict[str, object]) -> None:
    config = load_config(
        MaestroConfig, [*BASE, *(f"--{name}={written(name, value)}" for name, value in overrides.items())]
    )
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(MaestroConfig, ["--config", str(file)]) == config


@given(OVERRIDES)
@PROPERTY
def test_other_yaml_readers_read_the_written_configuration_the_same(overrides: dict[str, object]) -> None:
    config = load_config(
        MaestroConfig, [*BASE, *(f"--{name}={written(name, value)}" for name, value in overrides.items())]
    )
    assert yaml.safe_load(to_yaml(config)) == config.model_dump(mode="json")


TOKENS = st.lists(
    st.text(max_size=20)
    | st.sampled_from([f"--{name}" for name in NAMES])
    | st.builds(lambda name, text: f"--{name}={text}", st.sampled_from(NAMES), st.text(max_size=10)),
    max_size=6,
)


@given(TOKENS)
@PROPERTY
def test_any_command_line_is_a_configuration_or_a_config_error(tokens: list[str]) -> None:
    try:
        load_config(MaestroConfig, [*BASE, *tokens])
    except ConfigError as error:
        assert str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "train": st.fixed_dictionaries({}, optional={"seed": JSON, "batch_size": JSON}) | JSON,
        "rewards": st.fixed_dictionaries({}, optional={"components": JSON}),
        "conductor": st.fixed_dictionaries({}, optional={"weights": JSON, "kind": JSON}),
        "actor": st.fixed_dictionaries({}, optional={"adam": JSON, "eps_clip_low_high": JSON}),
    },
).map(json.dumps)


@given(st.text() | FILES)
@PROPERTY
def test_any_file_is_a_configuration_or_a_config_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        load_config(MaestroConfig, [*BASE, "--config", str(file)])
    except ConfigError as error:
        assert "pydantic" not in str(error).replace(text, "")


@given(st.sampled_from(NAMES), st.integers(min_value=0), st.data())
@PROPERTY
def test_an_option_with_one_letter_left_out_is_suggested(name: str, position: int, data: st.DataObject) -> None:
    position %= len(name)
    misspelt = name[:position] + name[position + 1 :]
    if misspelt in NAMES or name[position] == ".":
        return
    with pytest.raises(ConfigError) as caught:
        load_config(MaestroConfig, [*BASE, f"--{misspelt}=1"])
    assert f"`{name}`" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1.5", 1.5), ("-3", -3), ("+3", 3), ("1_000", 1000), (".5", 0.5), ("3.", 3.0), ("010", 10),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("on", "on"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("1__0", "1__0"), ("'3'", "3"),
        ("[1, a]", [1, "a"]), ("{a: 1}", {"a": 1}), (".inf", float("inf")), ("-.inf", float("-inf")),
    ],
)  # fmt: skip
def test_scalars_are_read_by_yaml_1_2(text: str, value: object) -> None:
    result = yaml12.parse(text)
    assert result == value and type(result) is type(value)
