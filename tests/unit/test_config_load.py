"""Loading a configuration: what is accepted, and what a user reads when it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

from openrlhf_maestro.config.fields import Section, option, section
from openrlhf_maestro.config.load import ConfigError, load_config, to_yaml
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.config.sft import SftConfig

SIX_GPUS = [f"--{model}.num_gpus_per_node=6" for model in ("actor", "ref", "reward")]
BASE = [
    *SIX_GPUS,
    "--actor.model_name_or_path=policy",
    "--data.prompt_dataset=rows.jsonl",
    "--reward.model_name_or_path=rm",
]


def load(*argv: str) -> MaestroConfig:
    return load_config(MaestroConfig, [*BASE, *argv])


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def message_of(*argv: str, base: list[str] = BASE, cls: type[Section] = MaestroConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(cls, [*base, *argv])
    return str(caught.value)


def test_file_and_overrides_are_merged_option_by_option(tmp_path: Path) -> None:
    file = write(tmp_path, "train:\n  seed: 7\n  num_episodes: 3\nactor:\n  adam:\n    lr: 1e-4\n    eps: 1e-6\n")
    config = load("--config", file, "--train.seed", "8", "--actor.adam.lr=2e-5")
    assert (config.train.seed, config.train.num_episodes) == (8, 3)
    assert (config.actor.adam.lr, config.actor.adam.eps) == (2e-5, 1e-6)
    assert config.actor.model_name_or_path == "policy"


def test_the_position_of_config_among_the_overrides_does_not_matter(tmp_path: Path) -> None:
    file = write(tmp_path, "train: {seed: 7}\n")
    before = load(f"--config={file}", "--train.seed", "8")
    after = load("--train.seed", "8", "--config", file)
    assert before == after and before.train.seed == 8


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        (["--train.full_determinism_enable"], True),
        (["--train.full_determinism_enable", "--run.name", "x"], True),
        (["--train.full_determinism_enable", "true"], True),
        (["--train.full_determinism_enable=true"], True),
        (["--train.full_determinism_enable", "false"], False),
        (["--train.full_determinism_enable", "--train.full_determinism_enable=false"], False),
    ],
)
def test_switches_stand_alone_or_take_a_value(tokens: list[str], value: bool) -> None:
    assert load(*tokens).train.full_determinism_enable is value


def test_lists_mappings_and_null_are_yaml() -> None:
    config = load(
        "--rewards.components",
        "[{kind: format}, {kind: length, l_min: 10}]",
        "--actor.eps_clip_low_high",
        "[0.2, 0.28]",
        "--conductor.kind=fixed",
        '--conductor.weights={"format": 1, "length": 3}',
        "--data.label_key",
        "null",
    )
    assert [component.kind for component in config.rewards.components] == ["format", "length"]
    assert config.rewards.components[1].l_min == 10
    assert config.actor.eps_clip_low_high == (0.2, 0.28)
    assert config.conductor.weights == {"format": 1.0, "length": 3.0}
    assert config.data.label_key is None


@pytest.mark.parametrize("text", ["123", "true", "{}", "[a", "a: b", "", "no", "-1", "--x", "*", "a=b"])
def test_text_options_take_their_value_as_it_stands(text: str) -> None:
    assert load(f"--data.prompt_split={text}").data.prompt_split == text


class Short(Section):
    """A configuration with a short name."""

    shorthands: ClassVar[dict[str, str]] = {"model": "actor.name"}

    class Actor(Section):
        """The model."""

        name: str = option(..., "its name")

    actor: Actor


@pytest.mark.parametrize("argv", [("--model", "m"), ("--model=m",), ("--actor.name", "m")])
def test_a_short_name_stands_for_its_option(argv: tuple[str, ...]) -> None:
    assert load_config(Short, argv).actor.name == "m"


def test_a_short_name_is_of_the_command_line_only(tmp_path: Path) -> None:
    assert "`model`" in message_of("--config", write(tmp_path, "model: m\n"), base=[], cls=Short)


def test_a_negative_number_is_a_value() -> None:
    assert load("--run.max_steps", "-1").run.max_steps == -1


def test_the_last_of_two_values_counts() -> None:
    assert load("--train.seed=1", "--train.seed=2").train.seed == 2


@pytest.mark.parametrize("text", ["train:\n", "train: {}\n", "", "# nothing\n", "train: null\n"])
def test_an_empty_section_or_file_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert load("--config", write(tmp_path, text)) == load()


def test_yaml_1_1_surprises_are_absent(tmp_path: Path) -> None:
    file = write(
        tmp_path, "run: {name: no}\ndata: {prompt_split: 1:30, input_key: 2024-01-01}\nactor: {adam: {lr: 1e-4}}\n"
    )
    config = load("--config", file)
    assert (config.run.name, config.data.prompt_split, config.data.input_key) == ("no", "1:30", "2024-01-01")
    assert config.actor.adam.lr == 1e-4


def test_yaml_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    file = write(tmp_path, "ref: &side {num_nodes: 1, offload: true}\nreward: {<<: *side, offload: false}\n")
    config = load("--config", file)
    assert config.ref.offload is True and config.reward.offload is False


# Files that extend others.


def write_files(tmp_path: Path, files: dict[str, str]) -> str:
    """Writes them and returns the last."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / list(files)[-1])


def test_a_file_lays_its_options_over_those_of_the_files_it_extends(tmp_path: Path) -> None:
    file = write_files(
        tmp_path,
        {
            "base.yaml": "train: {seed: 1, num_episodes: 3}\nactor:\n  adam: {lr: 1e-4, eps: 1e-6}\n"
            "conductor: {kind: fixed, weights: {format: 1, length: 1}}\n"
            "rewards: {components: [{kind: format}, {kind: length, l_min: 10}]}\nrollout: {temperature: 0.5}\n",
            "models/small.yaml": "extends: ../base.yaml\ntrain: {seed: 2}\nrollout:\nrewards: {max_missing_rate: 0.5}\n"
            "conductor: {weights: {format: 1, length: 3}}\n",
            "runs/run.yaml": f"extends: {tmp_path}/models/small.yaml\nactor: {{adam: {{lr: 1e-3}}}}\n"
            "rewards: {components: [{kind: length}, {kind: format}]}\n",
        },
    )
    config = load("--config", file, "--train.num_episodes=4")
    assert (config.train.seed, config.train.num_episodes, config.rollout.temperature) == (2, 4, 0.5)
    assert (config.actor.adam.lr, config.actor.adam.eps) == (1e-3, 1e-6)
    # Lists and mappings are replaced whole: l_min is gone, the other options of `rewards` stay.
    assert [component.model_dump(exclude_unset=True) for component in config.rewards.components] == [
        {"kind": "length"},
        {"kind": "format"},
    ]
    assert config.rewards.max_missing_rate == 0.5
    assert config.conductor.weights == {"format": 1.0, "length": 3.0}


def test_what_is_written_of_a_configuration_extends_nothing(tmp_path: Path) -> None:
    file = write_files(tmp_path, {"base.yaml": "train: {seed: 5}", "run.yaml": "extends: base.yaml"})
    config = load("--config", file)
    written = tmp_path / "elsewhere.yaml"
    written.write_text(to_yaml(config))
    assert "extends" not in written.read_text()
    assert load_config(MaestroConfig, ["--config", str(written)]) == config


# (files, what the message must say; {} is their folder)
EXTENDING = {
    "unknown option in the base": (
        {"base.yaml": "train: {sed: 1}", "run.yaml": "extends: base.yaml"},
        ["`train.sed` in {}/base.yaml", "`train.seed`"],
    ),
    "unknown option in the file itself": (
        {"base.yaml": "train: {seed: 1}", "run.yaml": "extends: base.yaml\ntrain: {sed: 1}"},
        ["`train.sed` in {}/run.yaml"],
    ),
    "wrong value in the base": (
        {"base.yaml": "train: {seed: x}", "run.yaml": "extends: base.yaml\ntrain: {num_episodes: 1}"},
        ["`train.seed` in {}/base.yaml"],
    ),
    "wrong value over a right one": (
        {"base.yaml": "train: {seed: 1}", "run.yaml": "extends: base.yaml\ntrain: {seed: x}"},
        ["`train.seed` in {}/run.yaml"],
    ),
    "a section that is none in the base": (
        {"base.yaml": "train: 3", "run.yaml": "extends: base.yaml\ntrain: {seed: 1}"},
        ["`train` in {}/base.yaml is 3"],
    ),
    "no such base": ({"run.yaml": "extends: bse.yaml"}, ["`extends: bse.yaml` in {}/run.yaml: there is no such file"]),
    "base that is not YAML": (
        {"base.yaml": "a: [", "run.yaml": "extends: base.yaml"},
        ["{}/base.yaml is not valid YAML"],
    ),
    "two bases": ({"run.yaml": "extends: [a.yaml, b.yaml]"}, ['`extends` in {}/run.yaml is ["a.yaml", "b.yaml"]']),
    "no base": ({"run.yaml": "extends:"}, ["`extends` in {}/run.yaml is null"]),
    "itself": ({"run.yaml": "extends: run.yaml"}, ["`extends: run.yaml` in {}/run.yaml", "leads back to itself"]),
    "a circle": (
        {"a.yaml": "extends: sub/b.yaml", "sub/b.yaml": "extends: ../run.yaml", "run.yaml": "extends: a.yaml"},
        ["`extends: ../run.yaml` in {}/sub/b.yaml", "leads back to itself"],
    ),
    "inside a section": ({"run.yaml": "train: {extends: a}"}, ["`train.extends` in {}/run.yaml is not an option"]),
}  # fmt: skip


@pytest.mark.parametrize("case", EXTENDING)
def test_the_message_names_the_file_in_which_the_fault_is(case: str, tmp_path: Path) -> None:
    files, fragments = EXTENDING[case]
    message = message_of("--config", write_files(tmp_path, files))
    assert_is_one_short_paragraph(message.replace(str(tmp_path), ""))
    for fragment in fragments:
        assert fragment.replace("{}", str(tmp_path)) in message


# The corpus of malformed configurations: (file, command line, what the message must say).
FILES = {
    "unknown section": ("rolout: {batch_size: 18}", "`rolout` in", "`rollout`"),
    "unknown option": ("rollout: {batchsize: 18}", "`rollout.batchsize` in", "`rollout.batch_size`"),
    "option in the wrong section": ("train: {lr: 1e-5}", "`train.lr` in", "`actor.adam.lr`"),
    "unknown nested option": ("actor: {adam: {beta: [0.9, 0.9]}}", "`actor.adam.beta`", "`actor.adam.betas`"),
    "unknown nested section": ("train: {adam: {lr: 1}}", "`train.adam`", "`actor.adam`"),
    "option of a list item": ("rewards: {components: [{kind: length, lmax: 3}]}", "item 0 (length): `lmax`", "`l_max`"),
    "option of no likeness": ("zzqq: 1", "`zzqq`", "--help"),
    "number as a key": ("3: 4", "`3` in"),
    "option at the top level": ("model_name_or_path: x", "`model_name_or_path`", "`actor.model_name_or_path`"),
    "dotted key": ("train.seed: 3", "`train.seed`", "with a dot"),
    "key written twice": ("train: {seed: 1}\nrun: {name: x}\ntrain: {seed: 2}", "line 3", "`train` is written twice"),
    "nested key written twice": ("train:\n  seed: 1\n  seed: 2", "line 3", "`seed` is written twice"),
    "unclosed bracket": ("train: {seed: 1", "line 1", "not valid YAML"),
    "tab indentation": ("train:\n\tseed: 1", "line 2", "not valid YAML"),
    "bad indentation": ("train:\n  seed: 1\n name: x", "line 3", "not valid YAML"),
    "two documents": ("train: {}\n---\nrun: {}", "not valid YAML", "line 2"),
    "python tag": ("run: !!python/object/apply:os.system [ls]", "not valid YAML", "line 1"),
    "undefined anchor": ("run: *there", "not valid YAML", "there"),
    "list instead of sections": ("- train\n- run", '["train", "run"]'),
    "text instead of sections": ("train", '"train"'),
    "section as a number": ("train: 3", "`train` in", "is a section"),
    "section as a list": ("train: [seed]", "`train` in", "is a section"),
    "nested section as a text": ("algo: {kl: k3}", "`algo.kl` in", "is a section"),
    "text for a whole number": ("train: {seed: many}", "`train.seed` in", '"many"', "a whole number"),
    "fraction for a whole number": ("train: {seed: 1.5}", "`train.seed` in", "1.5", "a whole number"),
    "switch for a whole number": ("train: {seed: true}", "`train.seed` in", "true", "on or off"),
    "switch for a number": ("rollout: {temperature: true}", "`rollout.temperature`", "on or off"),
    "switch for a text": ("run: {name: true}", "`run.name` in", "on or off"),
    "number for a text": ("run: {name: 2024}", "`run.name` in", "2024", "in quotes"),
    "number for a switch": ("train: {colocate_all: 3}", "`train.colocate_all`", "true or false"),
    "list for a text": ("run: {name: [a]}", "`run.name` in", '["a"]', "a text"),
    "null for a number": ("train: {seed: }", "`train.seed` in", "null", "Leave it out"),
    "below the least": ("train: {batch_size: 0}", "`train.batch_size` in", "greater than or equal to 1"),
    "above the most": ("conductor: {emphasis: 2}", "`conductor.emphasis` in", "less than or equal to 1"),
    "infinite": ("actor: {adam: {lr: .inf}}", "`actor.adam.lr` in", "finite"),
    "not a number": ("actor: {adam: {lr: .nan}}", "`actor.adam.lr` in", "finite"),
    "not a choice": ("run: {device: gpu}", "`run.device` in", '"gpu"', "'cuda'"),
    "too few values": ("actor: {adam: {betas: [0.9]}}", "`actor.adam.betas` in", "2 values"),
    "too many values": ("actor: {adam: {betas: [0.9, 0.9, 0.9]}}", "`actor.adam.betas` in", "2 values"),
    "number for a list": ("actor: {adam: {betas: 0.9}}", "`actor.adam.betas` in", "a list"),
    "list for a mapping": ("conductor: {weights: [1, 2]}", "`conductor.weights` in", "a mapping"),
    "text in a mapping of numbers": ("conductor: {weights: {format: x}}", "`conductor.weights.format` in", "a number"),
    "no components": ("rewards: {components: []}", "`rewards.components` in", "at least 1 item"),
    "component as a text": ("rewards: {components: [format]}", "`rewards.components[0]` in", "{kind: format}"),
    "component without a kind": ("rewards: {components: [{name: x}]}", "`rewards.components[0]` in", "has no kind"),
    "component twice": ("rewards: {components: [{kind: format}, {kind: format}]}", "two components are called format"),
    "template without a place": ("data: {input_template: hello}", "`data.input_template` in", "{}"),
    "empty name": ("run: {name: ''}", "`run.name` in", "at least 1 character"),
    "group of one": ("rollout: {n_samples_per_prompt: 1}", "rollout.n_samples_per_prompt is 1", "2 or more"),
    "no room for a prompt": ("data: {max_len: 1024}", "data.max_len (1024)", "rollout.max_new_tokens (1024)"),
    "does not divide": ("rollout: {batch_size: 17}", "= 85 responses a step", "18"),
    "huge number": (f"train: {{seed: {'9' * 5000}}}", "not valid YAML", "cannot be read as a number"),
}  # fmt: skip

COMMAND_LINES = {
    "unknown option": (["--rolout.batch_size", "3"], "--rolout.batch_size is not an option", "`rollout.batch_size`"),
    "option in the wrong section": (["--train.lr", "3"], "--train.lr is not", "`actor.adam.lr`"),
    "dashes for underscores": (["--run.max-steps", "3"], "--run.max-steps is not", "`run.max_steps`"),
    "option without a section": (["--seed=3"], "--seed is not", "`train.seed`"),
    "section": (["--actor", "x"], "--actor is a section", "--actor.model_name_or_path"),
    "key of a mapping": (["--conductor.weights.format", "1"], "--conductor.weights takes its whole value"),
    "one dash": (["-x"], "unexpected argument `-x`"),
    "stray word": (["--train.seed", "3", "4"], "unexpected argument `4`"),
    "value left out": (["--run.max_steps"], "--run.max_steps needs a value", "GRPO steps"),
    "value left out before an option": (["--run.max_steps", "--run.name", "x"], "--run.max_steps needs a value"),
    "word for a switch": (["--train.colocate_all", "maybe"], "--train.colocate_all is", "true or false"),
    "value that is not YAML": (["--rewards.components", "["], "--rewards.components [:", "not YAML"),
    "key twice in a value": (["--conductor.weights", "{a: 1, a: 2}"], "--conductor.weights", "written twice"),
    "wrong kind of component": (["--rewards.components", "[{kind: fmt}]"], "[0] has kind `fmt`", "`format`"),
    "no kind of component": (["--rewards.components", "[{kid: x}]"], "--rewards.components[0] has no kind", "format,"),
    "unknown key in a value": (
        ["--rewards.components", "[{kind: length, lmax: 3}]"],
        "--rewards.components, item 0 (length): `lmax`",
        "`l_max`",
    ),
    "text for a number": (["--train.seed", "x"], '--train.seed is "x"', "whole number"),
    "number for a list": (["--actor.eps_clip_low_high", "0.2"], "--actor.eps_clip_low_high is 0.2", "a list"),
    "too few values": (["--actor.eps_clip_low_high", "[0.2]"], "--actor.eps_clip_low_high is [0.2]", "2 values"),
    "config without a file": (["--config"], "--config takes one YAML file"),
    "config twice": (["--config", "a.yaml", "--config", "b.yaml"], "--config takes one YAML file, once"),
    "config that is not there": (["--config", "nowhere.yaml"], "nowhere.yaml", "no such file"),
    "colocation": (["--train.colocate_all"], "train.colocate_all needs as many GPUs"),
    "long value": (["--train.seed", "x" * 500], "whole number"),
}  # fmt: skip


def assert_is_one_short_paragraph(message: str) -> None:
    assert len(message) < 400 and "\n" not in message
    for trace in ("pydantic", "Traceback", "Input should", "type=", "<class", "Section", "value_error"):
        assert trace not in message


@pytest.mark.parametrize("case", FILES)
def test_malformed_files(case: str, tmp_path: Path) -> None:
    text, *fragments = FILES[case]
    message = message_of("--config", write(tmp_path, text))
    assert_is_one_short_paragraph(message.replace(str(tmp_path), ""))
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("case", COMMAND_LINES)
def test_malformed_command_lines(case: str) -> None:
    argv, *fragments = COMMAND_LINES[case]
    message = message_of(*argv)
    assert_is_one_short_paragraph(message)
    for fragment in fragments:
        assert fragment in message


def test_the_message_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "train: {seed: x}")
    assert f"`train.seed` in {file}" in message_of("--config", file)


def test_an_override_of_a_wrong_value_in_the_file_is_named_as_the_option(tmp_path: Path) -> None:
    assert message_of("--config", write(tmp_path, "train: {seed: 1}"), "--train.seed=x").startswith("--train.seed is")


def test_a_required_option_that_is_missing_is_named_with_its_meaning(tmp_path: Path) -> None:
    base = [argument for argument in BASE if "model_name_or_path=policy" not in argument]
    message = message_of("--config", write(tmp_path, "data: {}"), base=base)
    assert_is_one_short_paragraph(message.replace(str(tmp_path), ""))
    assert "`actor.model_name_or_path` is not set (Hugging Face name" in message
    assert "--actor.model_name_or_path" in message and "run.yaml" in message


def test_a_folder_or_a_binary_file_is_no_configuration(tmp_path: Path) -> None:
    assert "cannot be read" in message_of("--config", str(tmp_path))
    binary = tmp_path / "model.bin"
    binary.write_bytes(b"\x00\xff\xfe")
    assert "not a UTF-8 text" in message_of("--config", str(binary))


def test_several_problems_are_shown_one_a_line_the_first_five(tmp_path: Path) -> None:
    message = message_of("--config", write(tmp_path, "train: {a: 1, b: 2, c: 3, d: 4, e: 5, f: 6, g: 7}"))
    lines = message.splitlines()
    assert lines[0] == "the configuration has 7 problems:"
    assert [line[: len("- `train.a`")] for line in lines[1:6]] == [f"- `train.{key}`" for key in "abcde"]
    assert lines[6:] == ["- and 2 more."]


def test_all_missing_options_are_told_at_once() -> None:
    lines = message_of(base=[]).splitlines()
    assert ["`actor.model_name_or_path`" in lines[1], "`data.prompt_dataset`" in lines[2], len(lines)] == [
        True,
        True,
        3,
    ]


def test_a_model_validator_is_shown_as_its_message_alone() -> None:
    assert message_of("--rollout.n_samples_per_prompt=1").startswith("rollout.n_samples_per_prompt is 1:")


def test_the_sft_configuration_has_its_own_names() -> None:
    base = ["--model.model_name_or_path=m", "--data.dataset=d"]
    assert load_config(SftConfig, [*base, "--max_norm=2"]).max_norm == 2.0
    assert "`adam.lr`" in message_of("--train.lr=1", base=base, cls=SftConfig)


class _Login(Section):
    """A login."""

    user: str = option("me", "who")
    word: str | None = option(None, "pass word", secret=True)


class _WithSecrets(Section):
    """A configuration with something to hide."""

    login: _Login = section(_Login)
    logins: tuple[_Login, ...] = option((), "more of them")
    input_key: str = option("prompt", "not a secret, whatever its name")


def test_secrets_are_redacted_by_their_mark_and_at_any_depth() -> None:
    text = to_yaml(
        load_config(_WithSecrets, ["--login.word=hunter2", "--logins=[{word: hunter3}, {user: you}]", "--input_key=q"])
    )
    assert "hunter" not in text and text.count("'***'") == 2
    assert "input_key: q" in text and "user: you" in text and text.count("word: null") == 1


def test_the_shipped_schema_has_nothing_to_redact() -> None:
    assert "***" not in to_yaml(load())


def test_what_a_data_source_does_not_say_stays_unsaid_in_the_written_configuration(tmp_path: Path) -> None:
    length = {"kind": "length", "l_min": 10, "by_datasource": {"stories": {"l_max": 400}}}
    argv = ["--actor.model_name_or_path", "p", "--data.prompt_dataset", "d.jsonl"]
    config = load_config(MaestroConfig, [*argv, "--rewards.components", json.dumps([{"kind": "format"}, length])])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    read = load_config(MaestroConfig, ["--config", str(file)])
    assert read.rewards.components[1].parameter("l_min", "stories") == 10
    assert read.rewards.components[1].parameter("l_max", "stories") == 400
