"""What the adapters of `maestro prepare` share: options, trivial references, duplicates and the draw."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_maestro.data.prepare import choices, drawing
from openrlhf_maestro.data.prepare.drawing import allotted, distinct, draw, entry, normalised
from openrlhf_maestro.data.prepare.lettered_question import with_content
from openrlhf_maestro.data.prepare.recipe import Draft, Dropped, RawRow
from openrlhf_maestro.data.prepare.source import split_named
from openrlhf_maestro.data.prepare.trivial import is_trivial
from openrlhf_maestro.errors import DataError

NAN = math.nan

# ── options ──


def test_options_are_lettered_and_the_answer_has_letter_and_content() -> None:
    found = choices.by_letter(["Sad", "Happy", "Angry"], "c", "here")
    assert found.lettered == "A. Sad\nB. Happy\nC. Angry"
    assert found.answer == "C. Angry"


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B.", "B. ", " b) ", "B:"])
def test_a_letter_is_read_however_it_is_written(answer: str) -> None:
    assert choices.by_letter(["x", "y"], answer, "here").answer == "B. y"


@pytest.mark.parametrize("absent", [NAN, None, "", "  ", "nan", "NaN"])
def test_an_empty_option_is_left_out_and_the_letters_close_up(absent: Any) -> None:
    found = choices.by_letter(["Yes", absent, "No"], "C", "here")
    assert (found.lettered, found.answer) == ("A. Yes\nB. No", "B. No")
    with pytest.raises(Dropped, match=choices.ANSWER_ABSENT):
        choices.by_letter(["Yes", absent, "No"], "B", "here")


@pytest.mark.parametrize(("option", "kept"), [("Nan", "Nan"), ("None", "None"), (3.0, "3"), (0.5, "0.5"), (7, "7")])
def test_words_that_look_absent_and_numbers_are_options(option: Any, kept: str) -> None:
    assert choices.by_letter([option, "other"], "A", "here").answer == f"A. {kept}"


@pytest.mark.parametrize(
    ("index", "option", "bare"),
    [
        (0, "A. Yes", "Yes"),
        (0, "A. A. Yes", "Yes"),
        (1, "b) no", "no"),
        (2, "(C) maybe", "maybe"),
        (0, "A: x", "x"),
        (0, "A dog", "A dog"),
        (0, "A.M. or P.M.", "A.M. or P.M."),
        (1, "A. Yes", "A. Yes"),  # not its own letter
        (0, "Apple. A fruit", "Apple. A fruit"),
        (3, "D", "D"),
    ],
)
def test_only_an_option_s_own_letter_is_taken_off(index: int, option: str, bare: str) -> None:
    assert choices.without_label(option, index) == bare


def test_an_option_that_is_its_letter_alone_is_empty() -> None:
    with pytest.raises(Dropped, match=choices.ANSWER_ABSENT):
        choices.by_letter(["A. ", "x", "y"], "A", "here")


def test_labels_are_found_by_content_with_or_without_their_letter() -> None:
    for answer in ("Go home", "go  HOME", "B. Go home"):
        assert choices.by_content(["A. Stay", "B. Go home"], answer, "here").answer == "B. Go home"


@pytest.mark.parametrize(
    ("values", "answer", "reason"),
    [
        (["x", "y"], "z", choices.NO_SUCH_OPTION),
        (["x", "x"], "x", choices.AMBIGUOUS),
        (["x", None], "x", choices.TOO_FEW),
        ([str(n) for n in range(27)], "5", choices.TOO_MANY),
    ],
)
def test_a_row_whose_label_does_not_name_one_option_is_dropped(values: list[Any], answer: str, reason: str) -> None:
    with pytest.raises(Dropped, match=reason):
        choices.by_content(values, answer, "here")


@pytest.mark.parametrize("letter", ["E", "", "AB", "7"])
def test_a_letter_that_no_option_has_is_dropped(letter: str) -> None:
    with pytest.raises(Dropped, match=choices.NO_SUCH_OPTION):
        choices.by_letter(["x", "y", "z", "w"], letter, "here")


def test_any_label_is_a_content_a_letter_or_a_number_from_zero() -> None:
    assert choices.by_any(["A", "B"], "A", "here").answer == "A. A"
    assert choices.by_any(["x", "K"], "K", "here").answer == "B. K"
    assert choices.by_any(["2", "3", "1", "12"], 1, "here").answer == "B. 3"
    assert choices.by_any(["x", "y"], "B", "here").answer == "B. y"
    assert choices.by_any(["x", "y"], "1", "here").answer == "B. y"
    assert choices.by_any(["2", "1"], "1", "here").answer == "B. 1"
    with pytest.raises(Dropped, match=choices.NO_SUCH_OPTION):
        choices.by_any(["x", "y"], "2", "here")
    with pytest.raises(Dropped, match=choices.NO_SUCH_OPTION):
        choices.by_any(["x", "-1"], -1, "here")


@pytest.mark.parametrize(
    ("values", "answer"), [(["2", "3", "1", "12"], "1"), (["1", "0"], "0"), (["B", "A"], "A"), (["x", "X"], "x")]
)
def test_a_label_that_names_two_options_is_ambiguous(values: list[str], answer: str) -> None:
    with pytest.raises(Dropped, match=choices.AMBIGUOUS):
        choices.by_any(values, answer, "here")


def test_letters_are_labels_only_where_every_option_has_its_own() -> None:
    found = choices.by_content(["A. Lincoln", "G. Washington"], "A. Lincoln", "here")
    assert found.lettered == "A. A. Lincoln\nB. G. Washington" and found.answer == "A. A. Lincoln"
    found = choices.by_letter(["A. Lincoln", "b) Washington", None], "B", "here")
    assert found.lettered == "A. Lincoln\nB. Washington" and found.answer == "B. Washington"
    assert choices.by_content(["Lincoln", "Washington"], "A. Lincoln", "here").answer == "A. Lincoln"


def test_an_option_that_is_no_text_is_an_error_with_its_place() -> None:
    with pytest.raises(DataError, match=r"EA, row 3: option B is a list"):
        choices.by_letter(["x", ["y"]], "A", "EA, row 3")


# ── lettered questions ──

LISTED = "Demand is:\n\na. elastic\n\nb. inelastic demand\n\nc. none of these"


@pytest.mark.parametrize("letter", ["b", "B", "(b)", "b."])
def test_a_bare_letter_gets_the_content_that_the_question_lists(letter: str) -> None:
    assert with_content(LISTED, letter) == "B. inelastic demand"


@pytest.mark.parametrize(
    ("question", "reference"),
    [
        (LISTED, "d"),  # not listed
        (LISTED, "b. inelastic demand"),  # complete
        (LISTED, "inelastic"),
        ("What is B in this circuit?", "B"),
        ("Steps:\nb. second\na. first", "a"),  # no list of options
        ("Given\na. a value", "a"),  # only one
        ("Q1\nA. x\nB. y\nQ2\nA. p\nB. q", "B"),  # which of the two lists?
        ("Pick\nA. x\nB. y\nB. z", "A"),
        ("Consider $a$, $b$:\n(a) find a\n(b) find b", "b"),  # parts of the question
        ("Pick\nA.\n\nB. x", "A"),  # empty
    ],
)
def test_other_references_stay_as_they_are(question: str, reference: str) -> None:
    assert with_content(question, reference) == reference


@pytest.mark.parametrize(
    ("question", "reference", "complete"),
    [
        ("Pick\nA. x\nB. y z\n   goes on\nC. w", "B", "B. y z\n   goes on"),
        ("Pick\nA. x\nB. y\n\nExplain why.", "B", "B. y"),
        ("Pick\nA. x\n\nB. y\n", "A", "A. x"),
        ("Pick\n(a) x\n(b) y\n(c) z", "b", "B. y"),
        ("Pick\n(A) x\n(B) y", "b", "B. y"),
        ("Pick\na. True\nb. False", "a", "A. True"),
    ],
)
def test_an_option_goes_up_to_the_next_one_or_a_blank_line(question: str, reference: str, complete: str) -> None:
    assert with_content(question, reference) == complete


# ── trivial references ──


TRIVIAL = ["Yes", "true", "inflation", "a", "(B)", "D.", "No.", "don't", "well-known", "**Paris**", '"Paris"', "x", ""]
TRIVIAL += [
    "5",
    "-3.5",
    "\u22122",
    "1/2",
    "-1/2",
    "20%",
    "13.02\\%",
    "$22,338",
    "$5",
    "-$5",
    "\\$90",
    "\u20ac 30",
    "1,000,000",
]
TRIVIAL += [
    ".5",
    "3e8",
    "2 \\times 10^{5}",
    "2 x 10^5",
    "45\u00b0",
    "\u00b12",
    "\\boxed{5}",
    "$\\boxed{\\text{Yes}}$",
    "$12$",
]
TRIVIAL += ["\\frac{1}{2}", "$\\dfrac{-5}{3}$", "\\(7\\)", "\\[ 7 \\]", "\\pi", "\u60b2\u4f24"]

TELLING = ["42 km", "New York", "94 million", "$400 million", "5 m/s", "5 or 6", "C. 3", "B. inelastic", "1, 2", "1:1"]
TELLING += [
    "x=5",
    "-2x",
    "10^n",
    "2^{10}",
    "Q=118-5p",
    "$\\sqrt{2}$",
    "\\frac{\\pi}{4}",
    "\\boxed{x+1}",
    "(3,4)",
    "{1,2}",
]
TELLING += ["$3$ and $4$", "(1) and (2)", "The answer is: $\\boxed{5}$.", "\u56e0\u4e3a\u5979\u5bb3\u6015\u5988\u5988"]


@pytest.mark.parametrize("reference", TRIVIAL)
def test_one_word_or_a_bare_number_is_trivial(reference: str) -> None:
    assert is_trivial(reference)


@pytest.mark.parametrize("reference", TELLING)
def test_a_reference_of_several_words_or_a_formula_is_not(reference: str) -> None:
    assert not is_trivial(reference)


# ── names of splits ──


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("refined_gpt4story_all_5085_from_gpt4titles_sft", "train"),
        ("refined_gpt4story_all_5085_from_gpt4titles_dev", "validation"),
        ("Val", "validation"),
        ("test-00000-of-00002", "test"),
        ("Hinting Task Test", "test"),
        ("full", None),
        ("latest", None),
        ("contest", None),
        ("", None),
    ],
)
def test_the_last_word_of_a_name_says_its_split(name: str, split: str | None) -> None:
    assert split_named(name) == split


# ── duplicates ──


def entries(*rows: tuple[str, str, str | None]) -> list[drawing.Entry]:
    return [
        entry(Draft(prompt, reference, "d", split=split), 0, n) for n, (prompt, reference, split) in enumerate(rows)
    ]


def kept(rows: list[drawing.Entry], open_ended: bool = False) -> tuple[list[int], dict[str, int]]:
    dropped: Counter[str] = Counter()
    return sorted(one.number for one in distinct(rows, open_ended, dropped)), dict(dropped)


def test_prompts_are_compared_without_case_white_space_and_unicode_composition() -> None:
    assert normalised(" Caf\u00e9  ou\nthe\u0301? ") == normalised("CAFE\u0301 OU TH\u00c9?")
    assert normalised("x\u00b2") != normalised("x2")


def test_an_exact_duplicate_is_dropped_once() -> None:
    numbers, dropped = kept(entries(("q", "r", None), ("Q ", "r", None), ("other", "r", None)))
    assert len(numbers) == 2 and 2 in numbers and dropped == {"duplicate": 1}


def test_of_conflicting_references_none_is_kept_unless_the_task_is_open() -> None:
    rows = entries(("q", "yes it is", None), ("q", "no it is not", None), ("p", "x", None))
    assert kept(rows) == ([2], {drawing.CONFLICT: 2})
    numbers, dropped = kept(rows, open_ended=True)
    assert len(numbers) == 2 and dropped == {drawing.OTHER_REFERENCE: 1}


def test_a_prompt_in_two_published_splits_stays_where_others_evaluate() -> None:
    rows = entries(("q", "r", "train"), ("q", "r", "test"), ("p", "r", "validation"), ("p", "r", "train"))
    assert kept(rows) == ([1, 2], {drawing.IN_ANOTHER_SPLIT: 2})


# ── the draw ──


@pytest.mark.parametrize(
    ("rows", "sizes", "counts"),
    [
        (2860, (1432, 571, 857), (1432, 571, 857)),
        (5000, (2000, 1000, 1000), (2000, 1000, 1000)),
        (160, (272, 0, 128), (109, 0, 51)),  # 108.8 and 51.2
        (170, (1432, 571, 857), (85, 34, 51)),  # 85.1, 33.9, 50.9
        (3, (2000, 1000, 1000), (1, 1, 1)),  # 1.5, 0.75, 0.75
        (10, (Fraction("0.8"), Fraction("0.1"), Fraction("0.1")), (8, 1, 1)),
        (10, (Fraction("0.33"), 0, Fraction("0.33")), (3, 0, 3)),  # two thirds of ten rows are not drawn
        (7, (Fraction(1), 0, 0), (7, 0, 0)),
        (7, (1, 0, 0), (1, 0, 0)),
        (7, (1, 0, 1), (1, 0, 1)),
    ],
)
def test_sizes_are_as_asked_for_or_in_proportion(rows: int, sizes: Any, counts: tuple[int, int, int]) -> None:
    names = ("train", "validation", "test")
    assert allotted(rows, dict(zip(names, sizes, strict=True))) == dict(zip(names, counts, strict=True))


SIZES = st.dictionaries(st.sampled_from(["train", "validation", "test"]), st.integers(0, 50), min_size=1).filter(
    lambda sizes: sum(sizes.values()) > 0
)


@given(rows=st.integers(0, 120), sizes=SIZES)
def test_every_row_is_allotted_up_to_the_sizes_and_none_is_off_by_one(rows: int, sizes: dict[str, int]) -> None:
    counts, whole = allotted(rows, sizes), sum(sizes.values())
    assert sum(counts.values()) == min(rows, whole)
    for split, count in counts.items():
        exact = Fraction(sizes[split] * min(rows, whole), whole)
        assert math.floor(exact) <= count <= math.ceil(exact)


RANDOM = st.randoms(use_true_random=False)
TEXTS = st.text("ab \n", min_size=1, max_size=4).filter(str.strip)
ROWS = st.lists(st.tuples(TEXTS, st.sampled_from(["r", "s"])), max_size=40)
PUBLISHED = st.lists(
    st.tuples(TEXTS, st.sampled_from("rs"), st.sampled_from(["train", "validation", "test"])), max_size=40
)


def texts(rows: list[tuple[str, str, str | None]], sizes: Any, seed: int, open_ended: bool) -> tuple[Any, Counter[str]]:
    """The prompts of each split, in order, as they are compared."""
    dropped: Counter[str] = Counter()
    drawn = draw(distinct(entries(*rows), open_ended, dropped), sizes, seed, dropped)
    found = {
        split: [(normalised(rows[one.number][0]), rows[one.number][1]) for one in ones] for split, ones in drawn.items()
    }
    assert len(rows) == sum(map(len, found.values())) + dropped.total()
    return found, dropped


@given(rows=ROWS, sizes=SIZES, seed=st.integers(0, 9), open_ended=st.booleans(), random=RANDOM)
def test_no_prompt_is_in_two_splits_nothing_is_lost_and_order_does_not_matter(
    rows: list[tuple[str, str]], sizes: dict[str, int], seed: int, open_ended: bool, random: Any
) -> None:
    pool: list[tuple[str, str, str | None]] = [(prompt, reference, None) for prompt, reference in rows]
    found, dropped = texts(pool, sizes, seed, open_ended)
    prompts = [prompt for ones in found.values() for prompt, _ in ones]
    assert len(prompts) == len(set(prompts))
    shuffled = list(pool)
    random.shuffle(shuffled)
    assert texts(shuffled, sizes, seed, open_ended) == (found, dropped)


@given(rows=PUBLISHED, random=RANDOM)
def test_published_splits_stay_apart_in_any_order(rows: list[tuple[str, str, str]], random: Any) -> None:
    found, dropped = texts([*rows], None, 1, True)
    by_prompt: dict[str, set[str]] = {}
    for prompt, _, split in rows:
        by_prompt.setdefault(normalised(prompt), set()).add(split)
    best = {
        prompt: next(s for s in ("test", "validation", "train") if s in splits) for prompt, splits in by_prompt.items()
    }
    assert {prompt: split for split, ones in found.items() for prompt, _ in ones} == best
    shuffled = [*rows]
    random.shuffle(shuffled)
    assert texts([*shuffled], None, 1, True) == (found, dropped)


CLUSTERED = st.lists(st.sampled_from(["s", "t", "u", "v", "w", None]), max_size=40)


@given(clusters=CLUSTERED, sizes=SIZES, seed=st.integers(0, 3), random=RANDOM)
def test_clusters_stay_whole_and_sizes_are_off_by_less_than_one(
    clusters: list[str | None], sizes: dict[str, int], seed: int, random: Any
) -> None:
    rows = [entry(Draft(f"p{n}", "r", "d", cluster=name), 0, n) for n, name in enumerate(clusters)]
    dropped: Counter[str] = Counter()
    drawn = draw(rows, sizes, seed, dropped, keep_clusters=True)
    assert sum(map(len, drawn.values())) + dropped.total() == len(rows)
    for name in {one.cluster for one in rows if one.cluster}:
        there = [split for split, ones in drawn.items() if any(one.cluster == name for one in ones)]
        assert len(there) <= 1
        assert not there or sum(one.cluster == name for one in drawn[there[0]]) == sum(
            one.cluster == name for one in rows
        )
    largest = max([1, *Counter(one.cluster for one in rows if one.cluster).values()])
    for split, count in allotted(len(rows), sizes).items():
        assert len(drawn.get(split, [])) < count + largest
    shuffled = [*rows]
    random.shuffle(shuffled)
    assert draw(shuffled, sizes, seed, Counter(), keep_clusters=True) == drawn


def test_another_seed_draws_other_rows() -> None:
    rows: list[tuple[str, str, str | None]] = [(f"p{n}", "r", None) for n in range(100)]
    drawn = [texts(rows, {"train": 10, "test": 10}, seed, False)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_file_that_grows_keeps_most_of_the_draw() -> None:
    """The draw is by prompt: ten rows more displace at most ten."""
    rows: list[tuple[str, str, str | None]] = [(f"p{n}", "r", None) for n in range(110)]
    few, more = (texts(rows[:count], {"train": 50}, 1, False)[0]["train"] for count in (100, 110))
    assert len(set(few) - set(more)) <= 10


# ── raw rows ──


def test_a_value_that_is_no_text_is_named_with_its_row() -> None:
    with pytest.raises(DataError, match=r"EA, row 2: `q` is a list"):
        RawRow({"q": ["x"]}, "EA", 2).text("q")


@pytest.mark.parametrize(
    ("value", "text"), [(" a\r\nb ", "a\nb"), (None, ""), (NAN, ""), ("nan", ""), (5, "5"), (2.0, "2"), (True, "True")]
)
def test_texts_are_trimmed_and_absent_values_empty(value: Any, text: str) -> None:
    assert RawRow({"q": value}, "f", 1).text("q") == text
