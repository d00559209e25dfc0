"""The section `conductor`: what cannot work is refused by the option's name, what has no effect is noted."""

from typing import Any

import pytest
from pydantic import ValidationError

from openrlhf_maestro.config.schema import MaestroConfig

PLAIN = [{"kind": "format"}, {"kind": "length"}]
ANCHORED = [*PLAIN, {"kind": "rule", "anchor": True}]


def make(components: list[dict[str, Any]] = PLAIN, sections: dict[str, Any] | None = None, **options: Any) -> Any:
    base = {"actor": {"model_name_or_path": "policy"}, "data": {"prompt_dataset": "bundled:tasks"}}
    return MaestroConfig.model_validate(
        base | {"rewards": {"components": components}, "conductor": options} | (sections or {})
    )


def test_the_anchor_is_none_of_the_conductors_components() -> None:
    config = make(ANCHORED, credit="anchor")
    assert config.component_names == ["format", "length"] and config.anchor.label == "rule"
    assert config.conductor.reads_anchor and config.notes() == []
    assert not make().conductor.reads_anchor


@pytest.mark.parametrize(
    ("components", "options", "message"),
    [
        (PLAIN, {"credit": "anchor"}, r"conductor\.credit: anchor needs a trusted signal: set anchor: true"),
        (ANCHORED, {}, r"`rule` component has anchor: true, .* Set conductor\.credit to anchor"),
        (ANCHORED, {"credit": "anchor", "schedule": "joint"}, r"conductor\.schedule: joint learns from .* to async"),
        (ANCHORED, {"credit": "anchor", "pairwise_coef": 0.1}, r"conductor\.pairwise_coef .* Set it to 0"),
        (PLAIN, {"schedule": "joint", "pairwise_coef": 0.1}, r"conductor\.pairwise_coef .* Set it to 0"),
        (PLAIN, {"emphasis": 0}, r"conductor\.emphasis: 0 gives every response the weights pi"),
        (PLAIN, {"freeze": True}, r"conductor\.freeze .* Set conductor\.init_from"),
        (PLAIN[:1], {}, r"nothing to choose with one component"),
        ([*PLAIN[:1], ANCHORED[2]], {"credit": "anchor"}, r"nothing to choose with one component"),
        (ANCHORED, {"kind": "single", "component": "rule"}, r"one of format, length\."),
        (
            [{"kind": "length", "name": f"length{k}"} for k in range(11)],
            {"min_prob": 0.095},
            r"conductor\.min_prob \(0\.095\) must be below 1 / 11",
        ),
    ],
)
def test_what_cannot_work(components: list[dict[str, Any]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(components, **options)


def test_joint_needs_rewards_that_are_a_function_of_the_weights() -> None:
    in_reward = {"objective": {"kl_in": "reward"}}
    with pytest.raises(ValidationError, match=r"schedule: joint .* Set objective\.kl_in to loss"):
        make(sections=in_reward, schedule="joint")
    make(sections=in_reward | {"algo": {"kl": {"init_coef": 0.0}}}, schedule="joint")  # there is no KL


@pytest.mark.parametrize(
    ("components", "options", "notes"),
    [
        (PLAIN, {"kind": "equal", "lr": 1e-3}, ["conductor.lr has no effect with conductor.kind: equal."]),
        (PLAIN, {"component": "format"}, ["conductor.component has no effect with conductor.kind: conductor."]),
        (PLAIN, {"anchor_share": 0.5}, ["conductor.anchor_share has no effect with conductor.credit: advantage."]),
        (
            PLAIN,
            {"schedule": "joint", "emphasis": 0.1, "update_steps": 6},
            [
                "conductor.emphasis has no effect with conductor.schedule: joint.",
                "conductor.update_steps has no effect with conductor.schedule: joint.",
            ],
        ),
        (
            ANCHORED,
            {"credit": "anchor", "emphasis": 1.0},
            ["conductor.emphasis has no effect with conductor.credit: anchor, which samples none."],
        ),
        (
            PLAIN,
            {"freeze": True, "init_from": "x", "lr": 1e-3, "pairwise_coef": 1.0, "min_prob": 0.01},
            [
                "conductor.lr has no effect with conductor.freeze: true.",
                "conductor.min_prob has no effect with conductor.init_from, whose Conductor has its own.",
                "conductor.pairwise_coef has no effect with conductor.freeze: true.",
            ],
        ),
        (
            ANCHORED,
            {"freeze": True, "init_from": "x"},
            ["the `rule` component, an anchor, is not scored with conductor.freeze: true."],
        ),
        (ANCHORED, {"kind": "equal"}, ["the `rule` component, an anchor, is not scored with conductor.kind: equal."]),
        (PLAIN, {"schedule": "joint", "init_from": "x", "context_layer": "first", "context_pooling": "mean"}, []),
    ],
)
def test_what_has_no_effect(components: list[dict[str, Any]], options: dict[str, Any], notes: list[str]) -> None:
    config = make(components, **options)
    assert config.notes() == notes
    assert config.conductor.reads_anchor == (options.get("credit") == "anchor")
