"""Verdicts by rule."""

from pathlib import Path

from openrlhf_maestro.config.verdicts import JudgeVerdictSection, ReferenceVerdictSection
from openrlhf_maestro.evaluation import Item, Verdict, make_verdicts


def test_verdicts_by_rule_are_in_the_order_of_the_responses() -> None:
    responses = ["<think>x</think><answer>3</answer>", "<think>x</think><answer>2</answer>", "3"]
    items = [
        Item(f"{number}#0", "comparing", "Which is the largest: 1 2 3?", "3", response)
        for number, response in enumerate(responses)
    ]
    judging = make_verdicts("rule", JudgeVerdictSection(), ReferenceVerdictSection(), Path("unused"))
    assert judging(items) == [Verdict(True, None), Verdict(False, None), Verdict(False, None)]
