"""Families of the bundled tasks: their rules, their demonstrations, their splits."""

import itertools
import random
import re
from dataclasses import replace

import pytest

from openrlhf_maestro.data.tasks import FAMILIES, answer_of, check
from openrlhf_maestro.data.tasks.family import CARELESS_SHARE, MISTAKE_SHARE, Draft
from openrlhf_maestro.data.tasks.rows import SPLITS, family_rows, split_of, task_rows

SIZES = {"train": 300, "validation": 40, "test": 60}


def respond(answer: str, reasoning: str = "so") -> str:
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


def draw(name: str, n: int = 300) -> list[Draft]:
    rng = random.Random(5)
    return [FAMILIES[name].draft(rng) for _ in range(n)]


def test_families_cover_the_papers_four_categories() -> None:
    assert {family.category for family in FAMILIES.values()} == {"reasoning", "creative", "social", "translation"}


@pytest.mark.parametrize("name", FAMILIES)
def test_references_are_right_and_mistakes_are_wrong(name: str) -> None:
    for draft in draw(name):
        assert check(name, draft.prompt, draft.reference, respond(draft.reference, draft.careful_reasoning))
        assert not check(name, draft.prompt, draft.reference, respond(draft.mistake, draft.careless_reasoning))


@pytest.mark.parametrize("name", FAMILIES)
def test_careful_writers_are_right_and_careless_ones_often_wrong(name: str) -> None:
    rng = random.Random(2)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for draft in draw(name, 1000):
        example = draft.demonstrate(rng)
        careful = example.response.startswith(f"<think>{draft.careful_reasoning}</think>")
        assert (example.response == example.chosen) == careful
        right[careful].append(check(name, draft.prompt, draft.reference, example.response))
    assert len(right[False]) / 1000 == pytest.approx(CARELESS_SHARE, abs=0.06)
    assert all(right[True])
    assert sum(right[False]) / len(right[False]) == pytest.approx(1 - MISTAKE_SHARE, abs=0.08)


@pytest.mark.parametrize("name", FAMILIES)
def test_another_prompts_answer_is_mostly_wrong(name: str) -> None:
    drafts = draw(name)
    right = sum(
        check(name, draft.prompt, draft.reference, respond(other.reference))
        for draft, other in itertools.pairwise(drafts)
    )
    # The shortest answers (a digit) coincide by chance; none of the families may accept most of what it is given.
    assert right < 0.35 * len(drafts)


@pytest.mark.parametrize(
    "response",
    [
        "{answer}",
        "<answer>{answer}</answer>",
        "<think>so</think>{answer}",
        "<think>so</think><answer>{answer}",
        "<think>so<answer>{answer}</answer>",
        "Well <think>so</think><answer>{answer}</answer>",
        "<think>so</think><answer>{answer}</answer> Bye",
        "<think>so</think>then<answer>{answer}</answer>",
        "<think>so</think><answer>{answer}</answer><answer>{answer}</answer>",
        "<think><think>so</think></think><answer>{answer}</answer>",
        "<answer>{answer}</answer><think>so</think>",
        "",
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_right_answer_out_of_format_is_wrong(name: str, response: str) -> None:
    draft = draw(name, 1)[0]
    assert check(name, draft.prompt, draft.reference, respond(draft.reference))
    assert not check(name, draft.prompt, draft.reference, response.format(answer=draft.reference))


def test_white_space_around_the_tags_is_allowed() -> None:
    assert answer_of(" \n<think>a\nb</think>\n <answer> 7 </answer>\n") == "7"


def test_an_unknown_datasource_is_refused() -> None:
    with pytest.raises(ValueError, match="no rule for datasource 'poems'"):
        check("poems", "p", "r", respond("r"))


def test_counting_reference_is_the_sum_of_the_numbers() -> None:
    for draft in draw("counting"):
        numbers = [int(number) for number in re.findall(r"\d+", draft.prompt)]
        assert int(draft.reference) == sum(numbers)
        assert draft.careful_reasoning.endswith(f"is {sum(numbers)}.")


def test_comparing_reference_is_the_extreme() -> None:
    for draft in draw("comparing"):
        wanted, numbers = re.fullmatch(r"Which is the (\w+): (.*)\?", draft.prompt).groups()
        extreme = max if wanted == "largest" else min
        assert int(draft.reference) == extreme(int(number) for number in numbers.split())


@pytest.mark.parametrize(
    ("prompt", "reference"),
    [
        ("Ann puts the key in the box. Bob moves it to the bag. Ann is away. Where will Ann look?", "the box"),
        ("Ann puts the key in the box. Bob moves it to the bag. Ann sees this. Where will Ann look?", "the bag"),
        ("Ann puts the key in the box. Bob moves it to the bag. Ann is away. Where will Bob look?", "the bag"),
        (
            "Ann puts the key in the box. Bob moves it to the bag. Ann sees this. Bob moves it to the jar. "
            "Ann is away. Where will Ann look?",
            "the bag",
        ),
    ],
)
def test_social_wording_means_what_the_reference_says(prompt: str, reference: str) -> None:
    """The expected place by a reading of the story that shares no code with the family."""
    place, believed = "", {}
    asked = re.search(r"Where will (\w+) look", prompt)[1]
    for sentence in prompt.split(". "):
        if moved := re.search(r"(\w+) (?:puts|moves) .* the (\w+)$", sentence):
            place = moved[2]
            believed[moved[1]] = place
        elif seen := re.match(r"(\w+) sees this", sentence):
            believed[seen[1]] = place
    assert f"the {believed[asked]}" == reference
    assert check("social", prompt, reference, respond(reference))


def test_social_references_follow_the_story() -> None:
    drafts = list(draw("social"))
    assert drafts
    for draft in drafts:
        test_social_wording_means_what_the_reference_says(draft.prompt, draft.reference)


def test_translation_keeps_nouns_in_order_and_puts_the_trait_behind() -> None:
    for draft in draw("translation"):
        if draft.prompt == "Translate: the cat sees the dog":
            assert draft.reference == "ka miu vid ka bau"
        english = draft.prompt.removeprefix("Translate: ").split()
        toy = draft.reference.split()
        assert len(english) == len(toy)
        assert english.count("the") == toy.count("ka") + toy.count("lo")
        assert toy[0] == "ka" and ("in" in english) == ("en" in toy)


STORY = "Write a story of three sentences about a shy owl, a lamp and a barn with a happy end."


@pytest.mark.parametrize(
    "answer",
    [
        "A shy owl lived in the barn. It found a lamp there. At last it was happy.",
        "In the barn sat a shy owl. One day it saw a lamp. Then it was glad.",
        "A lamp was in the barn. Once a shy owl came to the lamp. It sang and was glad.",
    ],
)
def test_many_different_stories_are_right(answer: str) -> None:
    assert check("creative", STORY, "any reference", respond(answer))


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("A shy owl, a lamp and a barn.", "a copy of the list"),
        ("A shy owl lived in the barn. At last it was happy.", "two sentences, no lamp"),
        ("A shy owl lived in the barn. It found a key there. At last it was happy.", "another thing"),
        ("An owl lived in the barn. It found a lamp there. At last it was happy.", "no trait"),
        ("A sad owl lived in the barn. It found a lamp there. At last it was happy.", "another trait"),
        ("A shy owl lived in the barn. It found a lamp there. At last it was lost.", "a dark end"),
        ("A shy owl lived in the barn. It found a lamp there. At last it was happy and lost.", "both moods"),
        ("A shy owl lived in the barn. It found a lamp there. Then it slept at home.", "no mood"),
        ("A shy owl lived in the barn. It found a lamp there. At last it was happy", "no full stop"),
        ("A shy owl lived in the barn. A shy owl lived in the barn. The lamp was glad.", "a sentence twice"),
        ("A shy owl lived in the barn. It found a lamp lamp there. At last it was happy.", "a word twice"),
        ("A shy owl lived in the barn. It found a the lamp. At last it was happy.", "article without noun"),
        ("A shy owl lived in the barn. It found the lamp in the. At last it was happy.", "ends in an article"),
        ("A shy owl in the barn. It found a lamp there. At last it was happy.", "no verb"),
        ("a shy owl lived in the barn. It found a lamp there. At last it was happy.", "no capital"),
        ("A shy Owl lived in the barn. It found a lamp there. At last it was happy.", "capital inside"),
        ("A shy owl lived in the barn. It zorked a lamp there. At last it was happy.", "unknown word"),
        ("A shy owl lived in the barn. It saw  a lamp. At last it was happy.", "double space"),
        ("A shy owl lived in the barn. It saw it. At last it was happy and saw a lamp and a lamp and a lamp.", "long"),
        (".", "nothing"),
        ("", "nothing"),
    ],
)
def test_bad_stories_are_wrong(answer: str, fault: str) -> None:
    assert not check("creative", STORY, "any reference", respond(answer)), fault


def test_a_prompt_of_another_family_is_refused_by_the_story_rule() -> None:
    with pytest.raises(ValueError, match="not a prompt of the creative family"):
        check("creative", "Translate: the cat sees the dog", "r", respond("A cat sat there."))


def test_prompts_are_distinct_and_splits_share_none() -> None:
    rows = task_rows(SIZES, seed=3)
    prompts = [row["prompt"] for split in rows.values() for row in split]
    assert len(set(prompts)) == len(prompts) == len(FAMILIES) * sum(SIZES.values())
    ids = [row["id"] for split in rows.values() for row in split]
    assert len(set(ids)) == len(ids)
    for split, size in SIZES.items():
        assert {row["split"] for row in rows[split]} == {split}
        assert all(sum(row["datasource"] == name for row in rows[split]) == size for name in FAMILIES)


def test_no_seed_puts_a_test_prompt_into_training() -> None:
    first, second = (task_rows(SIZES, seed) for seed in (0, 1))
    assert not {row["prompt"] for row in first["test"]} & {row["prompt"] for row in second["train"]}


def test_rows_are_deterministic_by_seed() -> None:
    assert task_rows(SIZES, 7) == task_rows(SIZES, 7)
    assert task_rows(SIZES, 7) != task_rows(SIZES, 8)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_has_thousands_of_prompts(name: str) -> None:
    rows = family_rows(FAMILIES[name], {"train": 2560, "validation": 100, "test": 200}, seed=0)
    assert len({row["prompt"] for row in rows}) == 2860


def test_too_few_distinct_prompts_are_an_error() -> None:
    with pytest.raises(ValueError, match="too few distinct prompts"):
        family_rows(replace(FAMILIES["counting"], draft=lambda rng: draw("counting", 1)[0]), {"train": 2}, seed=0)


def test_split_of_shares_prompts_out_as_meant() -> None:
    counts = {split: 0 for split in SPLITS}
    for i in range(5000):
        counts[split_of(f"prompt {i}")] += 1
    assert counts["validation"] == pytest.approx(500, abs=100)
    assert counts["test"] == pytest.approx(1000, abs=130)
