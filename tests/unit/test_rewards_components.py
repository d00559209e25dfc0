"""Kinds of component: raw scores, faults and missing scores, gates, normalisation."""

import asyncio
import math
from typing import Any, get_args

import pytest
import torch

from openrlhf_maestro.config.components import ComponentSection
from openrlhf_maestro.config.fields import options
from openrlhf_maestro.config.sections import RewardsSection
from openrlhf_maestro.rewards import (
    KINDS,
    Component,
    Context,
    Features,
    Group,
    MeasuredScorer,
    Missing,
    apply_gates,
    make_components,
    normalize,
    summarize,
)

NAN, INF = math.nan, math.inf
GOOD, BROKEN = "<think>r</think><answer>4</answer>", "<think>r</think><answer>4"


def sections(*items: dict[str, Any]) -> tuple[ComponentSection, ...]:
    return RewardsSection.model_validate({"components": items}).components


def make(*items: dict[str, Any] | str) -> list[Component]:
    return make_components(
        sections(*({"kind": item} if isinstance(item, str) else item for item in items)), Context(max_new_tokens=40)
    )


def measured(kind: str, **features: Any) -> list[float]:
    scorer = make(kind)[0].scorer
    assert isinstance(scorer, MeasuredScorer)
    return scorer.score(Features(**features)).tolist()


def group(responses: list[str], lengths: list[int], **changes: Any) -> Group:
    values: dict[str, Any] = {
        "prompt": "How many fig are in: fig pear fig kiwi?",
        "rendered_prompt": "",
        "queries": responses,
        "responses": responses,
        "token_ids": [[7] * length for length in lengths],
        "truncated": [False] * len(responses),
    }
    return Group(**(values | changes))


def from_text(item: dict[str, Any], of: Group) -> list[Any]:
    scorer = make(item)[0].scorer
    assert not isinstance(scorer, MeasuredScorer)
    return list(asyncio.run(scorer.score(of)))


def test_format() -> None:
    assert from_text({"kind": "format"}, group([GOOD, BROKEN, ""], [9, 8, 0])) == [1.0, 0.0, 0.0]


def test_perplexity_is_minus_nll_and_a_broken_format_is_the_responses_fault() -> None:
    scores = measured(
        "perplexity",
        texts=[GOOD, BROKEN, GOOD, BROKEN, GOOD],
        lengths=[9] * 5,
        reference_nll=torch.tensor([1.5, 0.1, NAN, NAN, INF]),
    )
    # A NaN is the scorer's, unless the response is at fault anyway; +inf says that the reference had no room.
    assert scores == pytest.approx([-1.5, -INF, NAN, -INF, -INF], nan_ok=True)


@pytest.mark.parametrize(("kind", "sign"), [("entropy", 1.0), ("neg_entropy", -1.0)])
def test_entropy_and_its_opposite(kind: str, sign: float) -> None:
    scores = measured(
        kind,
        texts=["a", "b", " \n", "", "c", "d"],
        lengths=[3, 3, 2, 0, 3, 3],
        mean_entropy=torch.tensor([0.5, 0.0, 0.1, NAN, NAN, INF]),
    )
    assert scores == pytest.approx([sign * 0.5, 0.0, -INF, -INF, NAN, NAN], nan_ok=True)


def test_length_uses_the_limits_of_the_groups_data_source() -> None:
    item = {"kind": "length", "l_min": 10, "by_datasource": {"stories": {"l_min": 20, "l_max": 60}}}
    responses, lengths = ["a", "b", "c", "d", " "], [10, 25, 40, 50, 3]
    # 1 up to 10, 0 from 40 (the run's longest response); in stories 1 up to 20, 0 from 60.
    assert from_text(item, group(responses, lengths)) == [1.0, 0.5, 0.0, 0.0, -INF]
    assert from_text(item, group(responses, lengths, datasource="stories")) == [1.0, 0.875, 0.5, 0.25, -INF]


def test_preference_that_is_not_finite_is_missing_but_a_text_too_long_for_it_is_at_fault() -> None:
    scores = measured(
        "preference",
        texts=["a", "b", "c", "d", ""],
        lengths=[3, 3, 3, 3, 1],
        preference=torch.tensor([-7.25, NAN, INF, -INF, 2.0]),
    )
    assert scores == pytest.approx([-7.25, NAN, NAN, -INF, -INF], nan_ok=True)


def test_rule_is_the_verdict_of_the_bundled_task() -> None:
    right, wrong = "<think>fig fig</think><answer>2</answer>", "<think>fig</think><answer>3</answer>"
    found = from_text({"kind": "rule"}, group([right, wrong, ""], [5, 5, 0], reference="2", datasource="counting"))
    assert found == [1.0, 0.0, 0.0]


def test_match_compares_the_answer_with_the_label() -> None:
    answers = ["Paris", " paris\n", "Paris, France", ""]
    responses = [f"<think>r</think><answer>{answer}</answer>" for answer in answers] + ["Paris"]
    asked = group(responses, [5] * 5, reference="Paris", metadata={"other": "the  LOT", "empty": " "})
    assert from_text({"kind": "match"}, asked) == [1.0, 1.0, 0.0, 0.0, -INF]
    lot = group(["<think>r</think><answer>The lot</answer>"], [5], metadata={"other": "the  LOT", "empty": " "})
    assert from_text({"kind": "match", "column": "other"}, lot) == [1.0]
    assert from_text({"kind": "match", "column": "empty"}, lot) == [Missing("a row has no empty")]
    assert from_text({"kind": "match", "column": "absent"}, lot) == [Missing("a row has no absent")]


def test_measured_scores_are_single_precision_and_of_every_response() -> None:
    scorer = make("entropy")[0].scorer
    assert isinstance(scorer, MeasuredScorer)
    double = Features(texts=["a", "b"], lengths=[9, 1], mean_entropy=torch.tensor([0.25, 0.5], dtype=torch.float64))
    assert scorer.score(double).dtype == torch.float32
    with pytest.raises(ValueError, match="'mean_entropy' is needed"):
        scorer.score(Features(texts=["a"], lengths=[1]))
    with pytest.raises(ValueError, match="2 values of 'mean_entropy' for 1 responses"):
        scorer.score(Features(texts=["a"], lengths=[1], mean_entropy=torch.zeros(2)))


def test_components_keep_their_order_names_and_gates() -> None:
    found = make("format", {"kind": "preference", "name": "skywork", "gate": "format"}, "length")
    assert [component.name for component in found] == ["format", "skywork", "length"]
    assert [component.gate for component in found] == [None, "format", None]


def test_every_kind_of_the_configuration_can_be_made() -> None:
    (components,) = [known for known in options(RewardsSection) if known.name == "components"]
    assert list(components.item_kinds) == list(KINDS)
    assert all(get_args(cls.model_fields["kind"].annotation) == (kind,) for kind, cls in components.item_kinds.items())


def test_which_kinds_are_ranked() -> None:
    # METHOD.md section 2; what has no known scale is ranked as well.
    kept = [kind for kind, entry in KINDS.items() if entry.normalisation == "none"]
    assert kept == ["format", "length", "rule", "match"]


# ── gates ──


def test_a_closed_gate_is_the_responses_fault_and_a_missing_one_makes_the_score_missing() -> None:
    components = make("format", {"kind": "preference", "gate": "format"}, {"kind": "length", "gate": "preference"})
    raw = torch.tensor([[1.0, 2.0, 0.5], [0.0, 3.0, 0.5], [NAN, 4.0, 0.5], [1.0, NAN, 0.5], [1.0, -1.0, 0.5]])
    expected = torch.tensor(
        [
            [1.0, 2.0, 0.5],
            [0.0, -INF, 0.5],  # length looks at the preference score itself, not at what its gate made of it
            [NAN, NAN, 0.5],
            [1.0, NAN, NAN],
            [1.0, -1.0, -INF],
        ]
    )
    torch.testing.assert_close(apply_gates(raw, components), expected, equal_nan=True)


def test_a_gate_that_is_itself_at_fault_is_closed() -> None:
    components = make("format", "preference", {"kind": "length", "gate": "preference"})
    gated = apply_gates(torch.tensor([[1.0, -INF, 0.5]]), components)
    assert gated.tolist() == [[1.0, -INF, -INF]]


def test_a_missing_gate_does_not_excuse_a_response_that_is_at_fault() -> None:
    gated = apply_gates(torch.tensor([[NAN, -INF]]), make("format", {"kind": "preference", "gate": "format"}))
    assert gated[0, 1].item() == -INF


# ── normalisation ──


def test_normalize_applies_each_components_own_rule() -> None:
    components = make("format", "perplexity", "length")
    raw = torch.tensor(
        [
            [[1.0, -2.0, 0.3], [0.0, -INF, -INF], [1.0, -1.0, NAN]],
            [[0.0, NAN, 0.9], [1.0, -3.0, INF], [1.0, -3.0, 0.1]],
        ]
    )
    expected = torch.tensor(
        [
            [[1.0, 0.5, 0.3], [0.0, 0.0, 0.0], [1.0, 1.0, NAN]],
            [[0.0, NAN, 0.9], [1.0, 0.5, NAN], [1.0, 0.5, 0.1]],
        ]
    )
    torch.testing.assert_close(normalize(raw, components), expected, equal_nan=True)


def test_normalize_takes_plus_infinity_as_missing_before_it_ranks() -> None:
    ranks = normalize(torch.tensor([[[INF], [1.0], [2.0]]]), make("preference"))
    torch.testing.assert_close(ranks[0, :, 0], torch.tensor([NAN, 0.0, 1.0]), equal_nan=True)


def test_normalize_refuses_another_number_of_components() -> None:
    with pytest.raises(ValueError, match=r"\(N, G, 1\)"):
        normalize(torch.zeros(2, 3, 2), make("format"))


def test_a_preset_is_for_components_that_say_nothing_themselves() -> None:
    items = sections({"kind": "format"}, {"kind": "entropy"}, {"kind": "length", "normalisation": "none"})
    chosen = {
        preset: [part.normalisation for part in make_components(items, Context(40), preset)]
        for preset in ("paper", "rank", "zscore", "none")
    }
    assert chosen == {
        "paper": ["none", "group_rank", "none"],
        "rank": ["group_rank", "group_rank", "none"],
        "zscore": ["zscore", "zscore", "none"],
        "none": ["none", "none", "none"],
    }


def test_summary_keeps_faults_and_missing_scores_apart() -> None:
    raw = torch.tensor([[[1.0, NAN], [-INF, NAN]], [[3.0, INF], [NAN, -INF]]])
    summary = summarize(raw)
    assert summary.raw_mean.tolist() == pytest.approx([2.0, NAN], nan_ok=True)
    assert summary.fault_rate.tolist() == [0.25, 0.25]
    assert summary.missing_rate.tolist() == [0.25, 0.75]


def test_a_normalisation_of_ones_own_takes_the_place_of_the_kinds() -> None:
    raw = torch.tensor([[[3.0], [1.0], [2.0]]])
    kept = normalize(raw, make({"kind": "entropy", "normalisation": "none"}))
    ranked = normalize(raw, make("entropy"))
    assert kept.flatten().tolist() == [3.0, 1.0, 2.0]
    assert ranked.flatten().tolist() == [1.0, 0.0, 0.5]
