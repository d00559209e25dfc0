"""The lab: its world against its definition, its findings, and the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openrlhf_maestro.cli.main import main
from openrlhf_maestro.config.lab import LabConfig, WorldSection
from openrlhf_maestro.config.load import ConfigError, load_config
from openrlhf_maestro.lab import Findings, drift_rows, rows, run_count, run_lab
from openrlhf_maestro.lab.arms import ANCHOR_ARM, EQUAL_ARM, PAPER_ARM, Arm, evaluate, make_arm
from openrlhf_maestro.lab.findings import settled_above
from openrlhf_maestro.lab.world import World

# The default world but for sizes: as few responses and updates as the end of each rule can be seen with.
SMALL = [
    "--lab.meta_updates=16",
    "--lab.evaluation_groups=150",
    "--world.groups=12",
    "--world.hidden_size=32",
    "--world.anchor_share=0.5",
    "--drift.hidden_sizes=[16, 256]",
    "--drift.steps=[6, 12]",
    "--drift.lr=5e-4",
]
CONTEXTS = ("reasoning", "creative")


@pytest.fixture(scope="module")
def findings() -> Findings:
    return run_lab(load_config(LabConfig, SMALL))


# ── the world ──


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldSection(hidden_size=256, cosine=0.5, cosine_across=0.2), seed=3)


def test_scores_have_their_levels_and_informativeness(world: World) -> None:
    """4,000 groups of 5: means and correlations are within 5 standard errors of 1 / sqrt(20,000) = 0.007 each."""
    for index, name in enumerate(CONTEXTS):
        groups = world.draw(4000, index)
        raw = groups.raw.reshape(-1, 5).double()
        for k, part in enumerate(world.section.components):
            spread = getattr(part, "spread", (part.level * (1 - part.level)) ** 0.5)
            assert raw[:, k].mean().item() == pytest.approx(part.level, abs=0.035 * spread)
            found = np.corrcoef(raw[:, k], groups.quality.flatten())[0, 1]
            assert found == pytest.approx(part.informativeness.get(name, 0.0), abs=0.035)
        assert set(raw[:, 0].tolist()) == {0.0, 1.0}


def test_the_anchor_is_scored_on_a_share_of_whole_groups(world: World) -> None:
    groups = world.draw(4000, 0)
    missing = groups.anchor.isnan()
    assert (missing.all(dim=1) == missing.any(dim=1)).all()
    assert (~missing[:, 0]).float().mean().item() == pytest.approx(0.25, abs=0.035)
    scored = ~missing[:, 0]
    found = np.corrcoef(groups.anchor[scored].flatten(), groups.quality[scored].flatten())[0, 1]
    assert found == pytest.approx(0.9, abs=0.02)


def test_hidden_states_have_rms_1_and_the_cosines_asked_for(world: World) -> None:
    """Means over 200 responses a context at H = 256: noise is below 0.01."""
    first, second = (world.draw(40, index).hidden.flatten(0, 1) for index in range(2))  # (200, 256)
    torch.testing.assert_close(first.square().mean(dim=1), torch.ones(200))
    within = first @ first.T / 256
    assert within[~torch.eye(200, dtype=torch.bool)].mean().item() == pytest.approx(0.5, abs=0.02)
    assert (first @ second.T / 256).mean().item() == pytest.approx(0.2, abs=0.02)


def test_a_seed_is_a_world() -> None:
    one, again, other = (World(WorldSection(), seed).draw() for seed in (1, 1, 2))
    assert torch.equal(one.raw, again.raw) and torch.equal(one.hidden, again.hidden)
    assert not torch.equal(one.raw, other.raw)


# ── an arm ──


def test_the_correlation_of_equal_weights_against_numpy() -> None:
    section = WorldSection(components=WorldSection().components[1:3])  # perplexity and entropy, both ranked
    groups = World(section, seed=1).draw(50, 0)
    orchestrator = make_arm(EQUAL_ARM, section, lr=1.0, update_steps=1, pairwise_coef=1.0)
    ranks = groups.raw.numpy().argsort(axis=1).argsort(axis=1) / 4  # no ties among continuous values
    rewards, quality = ranks.mean(axis=2), groups.quality.numpy()
    expected = np.corrcoef(*(_standardised(values).ravel() for values in (rewards, quality)))[0, 1]
    found = evaluate(EQUAL_ARM, orchestrator, section, groups, torch.Generator())
    assert found.correlation == pytest.approx(expected, abs=1e-4)
    assert found.weights.tolist() == [0.5, 0.5]


def _standardised(values: np.ndarray) -> np.ndarray:
    deviation = values - values.mean(axis=1, keepdims=True)
    return deviation / (values.std(axis=1, ddof=1, keepdims=True) + 1e-4)


def test_rewards_without_any_difference_go_with_nothing() -> None:
    section = WorldSection()
    arm = Arm("single: format", "single", component="format")
    groups = World(section, seed=1).draw(50, 0)
    groups.raw[..., 0] = 1.0
    orchestrator = make_arm(arm, section, lr=1.0, update_steps=1, pairwise_coef=1.0)
    assert evaluate(arm, orchestrator, section, groups, torch.Generator()).correlation == 0.0


# ── what is found ──


def test_anchored_credit_beats_equal_weights_by_a_fifth_in_every_context(findings: Findings) -> None:
    assert len(findings.of(ANCHOR_ARM)) == 5
    gain = findings.gain()
    assert tuple(gain) == CONTEXTS
    assert min(gain.values()) > 0.2


def test_the_papers_credit_ends_on_the_highest_level_and_the_anchor_on_what_is_informative(findings: Findings) -> None:
    found = {(row.arm, row.context): row for row in rows(findings)}
    highest = max(
        findings.config.world.components, key=lambda part: part.level if part.normalisation == "none" else 0.5
    )
    for context, informative in zip(CONTEXTS, ("perplexity", "entropy"), strict=True):
        paper, anchored = found[PAPER_ARM.name, context], found[ANCHOR_ARM.name, context]
        assert set(paper.winners) == {highest.name} == {"format"} and paper.largest > 0.9
        assert paper.correlation < found["equal", context].correlation - 0.1
        assert set(anchored.winners) == {informative} and anchored.largest > 0.9
        assert anchored.collapsed_at is not None and 1 < anchored.collapsed_at <= 16
        assert found["equal", context].collapsed_at is None


def test_a_larger_hidden_size_drifts_faster(findings: Findings) -> None:
    small, large = drift_rows(findings)
    assert (small.hidden_size, large.hidden_size) == (16, 256)
    assert small.component == large.component == "format"
    assert list(small.weights) == [6, 12]
    assert 0.2 < small.weights[12] < large.weights[6] < large.weights[12]


def test_every_learned_weight_starts_equal_and_stays_on_the_simplex(findings: Findings) -> None:
    for arm in findings.arms:
        if arm.learns:
            for index in range(2):
                curves = findings.curves(arm, index)  # (seeds, steps, K)
                torch.testing.assert_close(curves[:, 0], torch.full((5, 5), 0.2))
                known = ~curves.isnan().any(dim=-1)
                torch.testing.assert_close(curves[known].sum(dim=-1), torch.ones(int(known.sum())))


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        ([[0.2, 0.6, 0.4, 0.6, 0.7]], 4),  # counted from 1; falling back does not count
        ([[0.6, 0.6]], 1),
        ([[0.6, 0.4]], None),
        ([[0.4, float("nan"), 0.6]], 2),  # a step without a value decides nothing
        ([[0.2, 0.6, 0.6], [0.2, 0.2, 0.6], [0.2, 0.2, 0.2]], 2.5),
        ([[0.2, 0.6], [0.2, 0.2]], None),  # half of the seeds are not most
    ],
)
def test_settled_above(curves: list[list[float]], expected: float | None) -> None:
    assert settled_above(torch.tensor(curves), 0.5) == expected


def test_progress_is_told_of_every_run() -> None:
    config = load_config(LabConfig, [*SMALL, "--lab.seeds=1", "--lab.meta_updates=2"])
    calls: list[None] = []
    run_lab(config, lambda: calls.append(None))
    assert len(calls) == run_count(config) == 13 + 2


# ── the command ──


def test_the_command_prints_tables_and_writes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    argv = [*SMALL, "--lab.seeds=2", "--lab.meta_updates=3", f"--lab.output_dir={folder}"]
    assert main(["lab", *argv]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "anchor credit less equal weights, smallest of the seeds: reasoning" in printed
    assert {path.name for path in folder.iterdir()} == {"lab.json", "results.csv", "weights.csv", "lab.png"}
    summary = json.loads((folder / "lab.json").read_text())
    assert summary["config"]["lab"]["seeds"] == 2
    assert len(summary["table"]) == 13 * 2 and len(summary["drift"]) == 2
    with (folder / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 13 * 2 * 2
    with (folder / "weights.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 5 * 2 * 2 * 3 + 2 * 2 * 12  # learned arms x seeds x contexts x steps, sizes x seeds x steps
    assert found[0]["step"] == "1" and float(found[0]["format"]) == pytest.approx(0.2)


def test_a_folder_that_cannot_be_is_found_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["lab", f"--lab.output_dir={tmp_path}/file/out"]) == 2
    assert "lab.output_dir" in capsys.readouterr().err


def test_the_drift_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--lab.seeds=1", "--lab.meta_updates=2", "--drift.hidden_sizes=[]", f"--lab.output_dir={tmp_path}"]
    assert main(["lab", *argv]) == 0
    assert "lr 5e-05" not in capsys.readouterr().out
    assert (tmp_path / "lab.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--world.contexts", "[a, b, a]", "--world.components", "[]"], "world.components"),
        (["--world.contexts", "[reasoning]"], "informativeness of entropy names creative"),
        (["--world.contexts", "[reasoning, creative, creative]"], "world.contexts names something twice"),
        (["--world.cosine", "0.1"], "world.cosine_across must not be above world.cosine"),
        (["--world.hidden_size", "2"], "world.hidden_size must be above 2"),
        (["--drift.hidden_sizes", "[1]"], "drift.hidden_sizes"),
        (["--drift.steps", "[0]"], "drift.steps"),
        (
            [
                "--world.components",
                "[{kind: binary, name: a, informativeness: {reasoning: 2}}, {kind: binary, name: b}]",
            ],
            "informativeness of a in reasoning",
        ),
    ],
)
def test_worlds_that_cannot_be(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(LabConfig, argv)
