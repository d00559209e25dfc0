"""The Conductor's network: distribution, floor, sampling, and what is written to disk."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openrlhf_maestro.conductor import Conductor

NAMES = ["format", "perplexity", "entropy", "length", "preference"]
H, K = 8, len(NAMES)


def make(seed: int = 0, scale: float = 1.0, **arguments) -> Conductor:
    """A Conductor away from its uniform start."""
    conductor = Conductor(H, NAMES, **arguments)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in conductor.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return conductor


def hidden(rows: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, H, generator=torch.Generator().manual_seed(seed))


def test_starts_uniform_for_any_hidden_state() -> None:
    probs = Conductor(H, NAMES).probs(1e3 * hidden())
    torch.testing.assert_close(probs, torch.full((16, K), 1 / K), rtol=0, atol=1e-7)


def test_distribution_is_the_softmax_of_the_paper_mixed_with_the_floor() -> None:
    conductor, h = make(temperature=0.7, min_prob=0.01), hidden()
    weight, bias = conductor.head.weight.double(), conductor.head.bias.double()
    tau = conductor.log_temperature.double().exp()
    expected = []
    for row in h.double():
        logits = [(weight[k] @ row + bias[k]).item() / tau.item() for k in range(K)]
        exps = [math.exp(logit) for logit in logits]
        expected.append([(1 - K * 0.01) * e / sum(exps) + 0.01 for e in exps])
    torch.testing.assert_close(conductor.probs(h), torch.tensor(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("min_prob", [0.0, 1e-4, 0.05, 0.19])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1e3])
def test_on_the_simplex_and_never_below_the_floor(min_prob: float, scale: float) -> None:
    probs = make(scale=scale, min_prob=min_prob, learn_temperature=False).probs(hidden(200)).double()
    torch.testing.assert_close(probs.sum(1), torch.ones(200, dtype=torch.float64), rtol=0, atol=1e-6)
    assert probs.min().item() >= min_prob
    assert probs.min().item() > 0  # so that a log-probability is finite


def test_a_component_at_the_floor_still_has_a_gradient() -> None:
    """Clamping would give it none, and a component that was dropped could never return."""
    conductor = Conductor(H, NAMES)
    with torch.no_grad():
        conductor.head.bias.copy_(torch.tensor([0.0, -12.0, 0.0, 0.0, 0.0]))
    prob = conductor.probs(torch.zeros(1, H))[0, 1]
    assert prob.item() < 1.1e-4
    prob.log().backward()
    assert conductor.head.bias.grad is not None
    assert conductor.head.bias.grad[1].item() > 1e-3


def test_temperature_flattens_and_is_learned_only_if_asked() -> None:
    h = hidden()
    cold, hot = make(temperature=0.5, learn_temperature=False), make(temperature=5.0, learn_temperature=False)
    assert (hot.probs(h).amax(1) < cold.probs(h).amax(1)).all()
    assert cold.temperature == pytest.approx(0.5)
    assert "log_temperature" not in dict(cold.named_parameters())
    assert "log_temperature" in dict(make().named_parameters())
    assert make().state_dict().keys() == cold.state_dict().keys()


def test_computes_in_float32_whatever_comes_in() -> None:
    conductor, h = make(), hidden().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = conductor.probs(h)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, conductor.probs(h.float()))
    assert torch.equal(conductor(h), inside)


def test_leading_dimensions_are_kept() -> None:
    conductor, h = make(), hidden(12)
    torch.testing.assert_close(conductor.probs(h.view(4, 3, H)), conductor.probs(h).view(4, 3, K))


def test_samples_follow_the_distribution() -> None:
    conductor, draws = make(min_prob=0.05), 40_000
    h = hidden(1)
    probs = conductor.probs(h)[0]
    actions, log_probs = conductor.sample(h.repeat(draws, 1), torch.Generator().manual_seed(0))
    assert actions.dtype == torch.int64 and actions.shape == log_probs.shape == (draws,)
    assert not log_probs.requires_grad
    torch.testing.assert_close(log_probs, probs.log()[actions])
    frequency = actions.bincount(minlength=K) / draws
    # Four standard errors of a frequency.
    assert ((frequency - probs).abs() < 4 * (probs * (1 - probs) / draws).sqrt()).all()


def test_sampling_is_decided_by_the_generator() -> None:
    conductor, h = make(), hidden(64)
    first, second, other = (conductor.sample(h, torch.Generator().manual_seed(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_weights_mix_the_distribution_with_the_emphasis() -> None:
    conductor, h = make(), hidden(5)
    actions = torch.tensor([0, 4, 2, 2, 1])
    probs = conductor.probs(h).tolist()
    for emphasis in (0.0, 0.5, 0.8, 1.0):
        expected = [
            [(1 - emphasis) * probs[j][k] + emphasis * (k == action) for k in range(K)]
            for j, action in enumerate(actions.tolist())
        ]
        weights = conductor.weights(h, actions, emphasis)
        torch.testing.assert_close(weights, torch.tensor(expected), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(weights.sum(1), torch.ones(5))
    torch.testing.assert_close(conductor.weights(h, actions), conductor.weights(h, actions, 0.5))
    assert torch.equal(conductor.weights(h), conductor.probs(h))
    assert torch.equal(conductor.weights(h, emphasis=0.9), conductor.probs(h))


@pytest.mark.parametrize("emphasis", [-0.1, 1.1])
def test_weights_refuse_an_emphasis_that_leaves_the_simplex(emphasis: float) -> None:
    with pytest.raises(ValueError, match="emphasis"):
        make().weights(hidden(1), torch.tensor([0]), emphasis)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"reward_names": []}, "reward_names"),
        ({"reward_names": ["a", "a"]}, "reward_names"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"min_prob": 0.2}, "min_prob"),
        ({"min_prob": -1e-4}, "min_prob"),
    ],
)
def test_refuses_arguments_out_of_range(arguments: dict, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Conductor(**{"hidden_size": H, "reward_names": NAMES, **arguments})


def test_refuses_hidden_states_of_another_size() -> None:
    with pytest.raises(ValueError, match="hidden_size is 8"):
        make().probs(torch.zeros(2, H + 1))


@pytest.mark.parametrize("learn_temperature", [True, False])
def test_round_trip_is_bit_equal(tmp_path: Path, learn_temperature: bool, capsys: pytest.CaptureFixture[str]) -> None:
    conductor = make(temperature=0.3, min_prob=0.02, learn_temperature=learn_temperature)
    conductor.save_pretrained(tmp_path)
    loaded = Conductor.from_pretrained(tmp_path)
    assert capsys.readouterr().out == ""
    assert loaded.reward_names == NAMES and loaded.hidden_size == H
    assert loaded.temperature == conductor.temperature
    assert loaded.log_temperature.requires_grad == learn_temperature
    assert loaded.state_dict().keys() == conductor.state_dict().keys()
    for name, tensor in conductor.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    assert torch.equal(loaded.probs(hidden()), conductor.probs(hidden()))
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_layout_on_disk(tmp_path: Path) -> None:
    Conductor(H, (name for name in NAMES)).save_pretrained(tmp_path)  # any iterable of names ends up in the file
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "hidden_size": H,
        "reward_names": NAMES,
        "temperature": 1.0,
        "min_prob": 1e-4,
        "learn_temperature": True,
        "context_layer": "last",
        "context_pooling": "last_token",
    }
    assert load_file(tmp_path / "model.safetensors").keys() == {"head.weight", "head.bias", "log_temperature"}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"hidden_size": H + 1}, "hidden_size"),
        ({"reward_names": NAMES[:-1]}, "reward_names"),
        ({"reward_names": NAMES[::-1]}, "reward_names"),
        ({"min_prob": 1e-3}, "min_prob"),
    ],
)
def test_from_pretrained_refuses_other_arguments_than_stored(tmp_path: Path, arguments: dict, field: str) -> None:
    make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=field):
        Conductor.from_pretrained(tmp_path, **arguments)


def test_from_pretrained_accepts_the_same_arguments(tmp_path: Path) -> None:
    conductor = make()
    conductor.save_pretrained(tmp_path)
    loaded = Conductor.from_pretrained(tmp_path, hidden_size=H, reward_names=tuple(NAMES))
    assert torch.equal(loaded.head.weight, conductor.head.weight)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("head.bias"), "tensors"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "tensors"),
        (lambda tensors: tensors.update({"head.weight": torch.zeros(K, H + 1)}), "shape of head.weight"),
    ],
)
def test_from_pretrained_refuses_tensors_that_do_not_fit(tmp_path: Path, damage, message: str) -> None:
    make().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        Conductor.from_pretrained(tmp_path)


def test_from_pretrained_refuses_a_folder_without_its_config(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": H}))
    with pytest.raises(ValueError, match="reward_names"):
        Conductor.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        Conductor.from_pretrained(tmp_path)


def test_from_pretrained_refuses_a_folder_without_its_tensors(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        Conductor.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"there is no model\.safetensors"):
        Conductor.from_pretrained(tmp_path)


def test_what_h_is_read_from_is_kept_with_it(tmp_path: Path) -> None:
    make(context_layer="middle", context_pooling="mean").save_pretrained(tmp_path)
    loaded = Conductor.from_pretrained(tmp_path)
    assert (loaded.context_layer, loaded.context_pooling) == ("middle", "mean")
    loaded.check(H, NAMES, "middle", "mean")
    with pytest.raises(ValueError, match="context_layer is middle, not last"):
        loaded.check(H, NAMES, "last", "mean")
    with pytest.raises(ValueError, match="layer"):
        make(context_layer="second")
    # A folder from before there was a choice is of the last token of the last layer.
    config = json.loads((tmp_path / "config.json").read_text())
    kept = {name: value for name, value in config.items() if not name.startswith("context")}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    Conductor.from_pretrained(tmp_path).check(H, NAMES, "last", "last_token")


def test_check_names_the_field_that_differs() -> None:
    conductor = make()
    conductor.check(H, tuple(NAMES))
    with pytest.raises(ValueError, match="hidden_size is 8, not 9"):
        conductor.check(9, NAMES)
    with pytest.raises(ValueError, match="reward_names"):
        conductor.check(H, ["format", "rule"])
