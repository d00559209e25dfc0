"""The configuration of `maestro serve-rewards`, and what the command says before it serves."""

from __future__ import annotations

import socket

import pytest

from openrlhf_maestro.cli.main import main
from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.config.serve import ServeConfig
from openrlhf_maestro.errors import ConfigError

FORMAT = "--rewards.components=[{kind: format}]"


def load(*argv: str) -> ServeConfig:
    return load_config(ServeConfig, [FORMAT, *argv])


def test_defaults() -> None:
    config = load()
    assert (config.serve.host, config.serve.require_token, config.serve.policy_tokenizer) == ("127.0.0.1", True, None)
    assert config.notes() == []


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        ([], ["`rewards.components` is not set"]),
        (["--rewards.components=[]"], ["rewards.components"]),
        (["--rewards.components=[{kind: perplexity}]"], ["perplexity", "the policy's own forward"]),
        (["--rewards.components=[{kind: entropy}]"], ["entropy", "the policy's own forward"]),
        (["--rewards.components=[{kind: neg_entropy, name: em}]"], ["em is read off the policy's own forward"]),
        (["--rewards.components=[{kind: length}]"], ["`length` component needs l_max: a server"]),
        (["--rewards.components=[{kind: length, l_min: 9, l_max: 9}]"], ["l_min (9) must be below l_max (9)."]),
        (
            ["--rewards.components=[{kind: length, l_max: 9, by_datasource: {sums: {l_max: null}}}]"],
            ["`length` component needs l_max of sums: a server"],
        ),
        (
            ["--rewards.components=[{kind: length, name: short, l_max: 9, by_datasource: {sums: {l_min: 12}}}]"],
            ["`short` component: l_min of sums (12) must be below l_max (9)."],
        ),
        (["--rewards.components=[{kind: preference}]"], ["reward.model_name_or_path"]),
        (["--rewards.components=[{kind: format}, {kind: format}]"], ["two components are called format"]),
        (["--rewards.components=[{kind: format, gate: rule}]"], ["the gate of format is rule"]),
        ([FORMAT, "--rewards.weights={rule: 1}"], ["rewards.weights", "exactly format"]),
        ([FORMAT, "--rewards.weights={format: -1}"], ["not negative"]),
        ([FORMAT, "--rewards.weights={format: 0}"], ["not all 0"]),
        ([FORMAT, "--rewards.weights={}"], ["exactly format"]),
        ([FORMAT, "--serve.host=0.0.0.0", "--serve.require_token=false"], ["serve.require_token", "0.0.0.0"]),
        ([FORMAT, "--serve.host=192.168.0.7", "--serve.require_token=false"], ["192.168.0.7"]),
        ([FORMAT, "--serve.host=myhost", "--serve.require_token=false"], ["myhost"]),
        ([FORMAT, "--serve.prot=1"], ["`serve.port`"]),
        ([FORMAT, "--serve.token=abc"], ["--serve.token is not an option", "`serve.token_env`"]),
    ],
)
def test_what_cannot_work_is_refused(argv: list[str], fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ServeConfig, argv)
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_a_loopback_address_may_do_without_a_token(host: str) -> None:
    assert not load(f"--serve.host={host}", "--serve.require_token=false").serve.require_token


@pytest.mark.parametrize(
    ("option", "fragment"),
    [
        ("--serve.host=0.0.0.0", "not encrypted"),
        ("--rewards.weights={format: 2}", "rewards.weights has no effect"),
        ("--reward.model_name_or_path=x", "reward.model_name_or_path has no effect"),
    ],
)
def test_notes(option: str, fragment: str) -> None:
    (note,) = load(option).notes()
    assert fragment in note


def test_without_a_token_in_the_environment_the_command_says_how_to_make_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAESTRO_REWARD_TOKEN", " ")
    assert main(["serve-rewards", FORMAT, "--serve.port=0"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "MAESTRO_REWARD_TOKEN is not set" in err and "openssl rand -hex 32" in err and "require_token" in err


def test_a_token_that_no_client_could_send_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAESTRO_REWARD_TOKEN", "sésame")
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that it could not serve in any case
        assert main(["serve-rewards", FORMAT, f"--serve.port={taken.getsockname()[1]}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "MAESTRO_REWARD_TOKEN holds something else" in err and "sésame" not in err


def test_a_tokenizer_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MAESTRO_REWARD_TOKEN", "x" * 32)
    assert main(["serve-rewards", FORMAT, "--serve.port=0", "--serve.policy_tokenizer=./no/such/folder"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("maestro: serve.policy_tokenizer: ./no/such/folder cannot be")


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MAESTRO_REWARD_TOKEN", "x" * 32)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve-rewards", FORMAT, f"--serve.port={port}"]) == 1
    assert f"serve.port {port}: cannot listen there: Address already in use" in capsys.readouterr().err
