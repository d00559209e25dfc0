"""Token F1, exact match and chrF against values by hand and sacrebleu's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from openrlhf_maestro.config.verdicts import JudgeVerdictSection, ReferenceVerdictSection
from openrlhf_maestro.errors import DataError
from openrlhf_maestro.evaluation import Item, Verdict, make_verdicts
from openrlhf_maestro.evaluation.reference import chrf, exact_match, token_f1, tokens


def verdict(response: str, reference: str | None, **options: object) -> Verdict:
    section = ReferenceVerdictSection.model_validate(options)
    judging = make_verdicts("reference", JudgeVerdictSection(), section, Path("unused"))
    (found,) = judging([Item("a#0", "d", "q", reference, response)])
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat, the Hat!", ["cat", "hat"]),
        ("an A-B  test", ["ab", "test"]),
        ("theory of a thing", ["theory", "of", "thing"]),
        ("A", ["a"]),  # a choice's name, not an article
        ("$5.00", ["5.00"]),
        ("It is -3, not 3.14.", ["it", "is", "-3", "not", "3.14"]),
        ("\u22123 and -$5 and -.5", ["-3", "and", "-5", "and", "-.5"]),
        ("1,000.5", ["1000.5"]),
        ("2020-21, A-5, p.7, ...", ["202021", "a5", "p7"]),  # hyphens and full stops
        ("答案是-3。", ["答", "案", "是", "-3"]),
        ("«Bonjour», dit-il…", ["bonjour", "ditil"]),
        ("我喜欢猫。", ["我", "喜", "欢", "猫"]),
        ("用 Python 3 写", ["用", "python", "3", "写"]),
        ("Python写的", ["python", "写", "的"]),
        ("猫がいる", ["猫", "が", "い", "る"]),
        ("고양이가 있다", ["고양이가", "있다"]),  # Korean has spaces
        ("แมว", ["แ", "ม", "ว"]),
        ("", []),
        (" ... ", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        # shared 2 of 3 and of 4: precision 2/3, recall 2/4 -> 2 * (1/3) / (7/6) = 4/7
        ("the red cat sleeps", "a red cat is here", 4 / 7),
        ("red", "red", 1.0),
        ("red", "blue", 0.0),
        # as multisets: one "x" is shared, 2 * 1 / (3 + 1)
        ("x x x", "x", 0.5),
        # per character: 2 of 3 shared, and of 4
        ("我爱猫", "他爱黑猫", 4 / 7),
        ("", "red", 0.0),
        ("...", "!", 1.0),
    ],
)
def test_f1_by_hand(answer: str, reference: str, expected: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(expected, abs=1e-12)


def squads_f1(prediction: list[str], truth: list[str]) -> float:
    """Precision and recall as the data set's paper defines them."""
    same = sum(min(prediction.count(word), truth.count(word)) for word in set(prediction))
    if same == 0:
        return float(prediction == truth == [])
    precision, recall = same / len(prediction), same / len(truth)
    return 2 * precision * recall / (precision + recall)


WORDS = st.lists(st.sampled_from(["red", "blue", "the", "cat", "猫", "x"]), max_size=8)


@given(WORDS, WORDS)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(answer: list[str], reference: list[str]) -> None:
    a, r = " ".join(answer), " ".join(reference)

    def without(words: list[str]) -> list[str]:
        return [word for word in words if word != "the"] or words

    assert token_f1(a, r) == pytest.approx(squads_f1(without(answer), without(reference)))
    assert token_f1(a, r) == token_f1(r, a)
    assert (token_f1(a, r) == 1) == (Counter(without(answer)) == Counter(without(reference)))


def test_exact_match_is_of_the_normalised_tokens_in_their_order() -> None:
    assert exact_match("The Cat.", "cat") == 1.0
    assert exact_match("red cat", "cat red") == 0.0
    assert exact_match("cats", "cat") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("The cat sat on the mat.", "The cat is on the mat."),
        ("Le chat noir dort.", "Le chat dort."),
        ("x", "entirely different"),
        ("", "something"),
        ("我喜欢猫", "我爱猫"),
    ],
)
def test_chrf_is_sacrebleus(answer: str, reference: str) -> None:
    # chrF2 as sacrebleu's command line computes it (-m chrf): 6 characters, no words, beta 2, white space aside.
    metric = CHRF(char_order=6, word_order=0, beta=2, whitespace=False)
    assert chrf(answer, reference) == pytest.approx(metric.corpus_score([answer], [[reference]]).score / 100, abs=1e-9)


def test_chrf_by_hand() -> None:
    # Character n-grams of "abc" and "abd": 1-grams 2 of 3, 2-grams 1 of 2, 3-grams 0 of 1; longer ones do not exist and
    # are left out. Precision = recall = (2/3 + 1/2 + 0) / 3 = 7/18, and so is F.
    assert chrf("abc", "abd") == pytest.approx(7 / 18)
    assert chrf("same", "same") == 1.0


def test_scores_alone_have_no_right_and_a_threshold_gives_one() -> None:
    response = "<think>x</think><answer>the red cat sleeps</answer>"
    assert verdict(response, "a red cat is here") == Verdict(None, pytest.approx(4 / 7))
    assert verdict(response, "a red cat is here", threshold=0.57).right is True
    assert verdict(response, "a red cat is here", threshold=0.58).right is False
    assert verdict("<answer>Cat!</answer>", "a cat", metric="exact") == Verdict(True, 1.0)
    assert verdict("<answer>Dog</answer>", "a cat", metric="exact", threshold=0.0) == Verdict(False, 0.0)
    assert verdict("<answer>same</answer>", "same", metric="chrf") == Verdict(None, 1.0)


def test_an_empty_answer_scores_nothing() -> None:
    empty = "<think>so</think><answer></answer>"
    assert verdict(empty, "cat") == Verdict(None, 0.0)
    # Nor where nothing is left of the reference either.
    assert verdict(empty, "+") == Verdict(None, 0.0)
    assert verdict(empty, "+", metric="exact") == Verdict(False, 0.0)
    assert verdict("<think>cut", "think cut", metric="exact") == Verdict(False, 0.0)


@pytest.mark.parametrize(("answer", "reference"), [("-3", "3"), ("3.14", "314"), (".5", "5"), ("x = -2", "x = 2")])
def test_a_sign_and_a_decimal_point_are_part_of_a_number(answer: str, reference: str) -> None:
    assert exact_match(answer, reference) == 0.0
    assert token_f1(answer, reference) < 1.0
    assert exact_match(f"{answer}.", answer) == 1.0


def test_a_missing_reference_is_an_error_that_names_the_row() -> None:
    with pytest.raises(DataError, match=r"the row of a#0 \(d\) has none"):
        verdict("x", None)
