"""Kinds of component: raw scores, faults and missing scores, normalisation."""

import math

import pytest
import torch

from openrlhf_maestro.rewards import KINDS, Features, make_component, normalize, score_components, summarize

NAN, INF = math.nan, math.inf
GOOD, BROKEN = "<think>r</think><answer>4</answer>", "<think>r</think><answer>4"


def column(kind: str, **features) -> list[float]:
    return score_components([make_component(kind)], Features(**features))[:, 0].tolist()


def test_format() -> None:
    assert column("format", texts=[GOOD, BROKEN, ""], lengths=[9, 8, 0]) == [1.0, 0.0, 0.0]


def test_perplexity_is_minus_nll_and_a_broken_format_is_the_responses_fault() -> None:
    scores = column(
        "perplexity",
        texts=[GOOD, BROKEN, GOOD, BROKEN, GOOD],
        lengths=[9] * 5,
        reference_nll=torch.tensor([1.5, 0.1, NAN, NAN, INF]),
    )
    # A NaN is the scorer's, unless the response is at fault anyway; +inf says that the reference had no room.
    assert scores == pytest.approx([-1.5, -INF, NAN, -INF, -INF], nan_ok=True)


@pytest.mark.parametrize(("kind", "sign"), [("entropy", 1.0), ("neg_entropy", -1.0)])
def test_entropy_and_its_opposite(kind: str, sign: float) -> None:
    scores = column(
        kind,
        texts=["a", "b", " \n", "", "c", "d"],
        lengths=[3, 3, 2, 0, 3, 3],
        mean_entropy=torch.tensor([0.5, 0.0, 0.1, NAN, NAN, INF]),
    )
    assert scores == pytest.approx([sign * 0.5, 0.0, -INF, -INF, NAN, NAN], nan_ok=True)


def test_length_uses_each_responses_own_limits() -> None:
    scores = column(
        "length",
        texts=["a", "b", "c", ""],
        lengths=[15, 15, 30, 0],
        length_limits=[(10, 20), (20, 40), (10, 20), (10, 20)],
    )
    assert scores == [0.5, 1.0, 0.0, -INF]


def test_preference_that_is_not_finite_is_missing_but_a_text_too_long_for_it_is_at_fault() -> None:
    scores = column(
        "preference",
        texts=["a", "b", "c", "d", ""],
        lengths=[3, 3, 3, 3, 1],
        preference=torch.tensor([-7.25, NAN, INF, -INF, 2.0]),
    )
    assert scores == pytest.approx([-7.25, NAN, NAN, -INF, -INF], nan_ok=True)


def test_rule_passes_the_verdict_on() -> None:
    assert column("rule", texts=["a", "b", ""], lengths=[1, 1, 0], rule=torch.tensor([1.0, 0.0, 0.0])) == [
        1.0,
        0.0,
        0.0,
    ]


def test_columns_are_in_the_order_of_the_components_and_single_precision() -> None:
    components = [make_component(kind) for kind in ("rule", "format", "entropy")]
    features = Features(
        texts=[GOOD, "x"],
        lengths=[9, 1],
        rule=torch.tensor([0, 1]),
        mean_entropy=torch.tensor([0.25, 0.5], dtype=torch.float64),
    )
    raw = score_components(components, features)
    assert raw.dtype == torch.float32
    assert raw.tolist() == [[0.0, 1.0, 0.25], [1.0, 0.0, 0.5]]


def test_refuses_what_was_not_measured_or_has_another_size() -> None:
    component = make_component("preference", name="skywork")
    with pytest.raises(ValueError, match="'skywork' needs 'preference'"):
        score_components([component], Features(texts=["a"], lengths=[1]))
    with pytest.raises(ValueError, match="2 values of 'preference' for 1 responses"):
        score_components([component], Features(texts=["a"], lengths=[1], preference=torch.zeros(2)))
    with pytest.raises(ValueError, match="2 values of 'lengths' for 1 responses"):
        score_components([make_component("format")], Features(texts=["a"], lengths=[1, 1]))


def test_make_component_names_what_there_is() -> None:
    assert make_component("preference", name="skywork").name == "skywork"
    with pytest.raises(ValueError, match=r"'judgement'.*format, perplexity"):
        make_component("judgement")


def test_registry_is_consistent() -> None:
    assert all(kind == component.kind == component.name for kind, component in KINDS.items())
    ranked = [kind for kind, component in KINDS.items() if component.normalisation == "group_rank"]
    assert ranked == ["perplexity", "entropy", "neg_entropy", "preference"]  # METHOD.md section 2


def test_normalize_applies_each_components_own_rule() -> None:
    components = [make_component(kind) for kind in ("format", "perplexity", "length")]
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
    ranks = normalize(torch.tensor([[[INF], [1.0], [2.0]]]), [make_component("preference")])
    torch.testing.assert_close(ranks[0, :, 0], torch.tensor([NAN, 0.0, 1.0]), equal_nan=True)


def test_normalize_refuses_another_number_of_components() -> None:
    with pytest.raises(ValueError, match=r"\(N, G, 1\)"):
        normalize(torch.zeros(2, 3, 2), [make_component("format")])


def test_summary_keeps_faults_and_missing_scores_apart() -> None:
    raw = torch.tensor([[[1.0, NAN], [-INF, NAN]], [[3.0, INF], [NAN, -INF]]])
    summary = summarize(raw)
    assert summary.raw_mean.tolist() == pytest.approx([2.0, NAN], nan_ok=True)
    assert summary.fault_rate.tolist() == [0.25, 0.25]
    assert summary.missing_rate.tolist() == [0.25, 0.75]


def test_a_normalisation_of_ones_own_takes_the_place_of_the_kinds() -> None:
    raw = torch.tensor([[[3.0], [1.0], [2.0]]])
    kept = normalize(raw, [make_component("entropy", normalisation="none")])
    ranked = normalize(raw, [make_component("entropy")])
    assert kept.flatten().tolist() == [3.0, 1.0, 2.0]
    assert ranked.flatten().tolist() == [1.0, 0.0, 0.5]
