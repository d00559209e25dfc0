"""Verdicts by comparison with the reference answer, without a model."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from openrlhf_maestro.config.verdicts import ReferenceVerdictSection
from openrlhf_maestro.errors import DataError
from openrlhf_maestro.evaluation.answers import answer_segment
from openrlhf_maestro.evaluation.verdicts import Item, Verdict

_ARTICLES = frozenset({"a", "an", "the"})
# Scripts that are written without spaces: Thai, Lao, Myanmar, Khmer, kana, Han. Each character is a token there.
_NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(f"[{_NO_SPACES}]|[^\\s{_NO_SPACES}]+")
# The sign and the point of a number: "-3", "x = -.5", "3.14"; but no hyphen ("2020-21", "A-5") and no full stop.
_OF_A_NUMBER = re.compile(
    f"(?:(?<!\\w)|(?<=[{_NO_SPACES}]))-(?=[$€£¥]?\\.?\\d)|(?<=\\d)\\.(?=\\d)|(?<![\\w.])\\.(?=\\d)"
)
_MINUS = "\u2212"


class ReferenceVerdicts:
    """Scores the answer segment against the reference; an empty answer has 0."""

    def __init__(self, section: ReferenceVerdictSection) -> None:
        self.section = section

    def __call__(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item, in their order. Raises DataError for an item without a reference answer."""
        return [self._verdict(item) for item in items]

    def _verdict(self, item: Item) -> Verdict:
        if item.reference is None:
            raise DataError(
                f"a verdict by reference needs the reference answer, and the row of {item.key} ({item.datasource}) has "
                "none. Mend the row, or leave it out."
            )
        answer = answer_segment(item.response)
        score = METRICS[self.section.metric](answer, item.reference) if answer else 0.0
        threshold = 1.0 if self.section.metric == "exact" else self.section.threshold
        return Verdict(None if threshold is None else score >= threshold, score)


def tokens(text: str) -> list[str]:
    """SQuAD's normalisation (Rajpurkar et al. 2016), then split: lower case, no punctuation, no English articles.

    Punctuation is Unicode's, beside ASCII's symbols. Other than there, numbers keep a minus and a decimal point: -3 is
    not 3, and 3.14 not 314. A comma goes, as of thousands. Scripts without spaces are split into characters. A text
    of nothing but articles keeps them: "A" may be the name of a choice.
    """
    lower = text.lower().replace(_MINUS, "-")
    of_numbers = {match.start() for match in _OF_A_NUMBER.finditer(lower)}
    kept = "".join(
        character for place, character in enumerate(lower) if place in of_numbers or not _is_punctuation(character)
    )
    found = _TOKEN.findall(kept)
    return [token for token in found if token not in _ARTICLES] or found


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the tokens as multisets, in [0, 1]; 1 where both have none."""
    ours, theirs = Counter(tokens(answer)), Counter(tokens(reference))
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total())


def exact_match(answer: str, reference: str) -> float:
    """1 where the tokens are the same in the same order, else 0."""
    return float(tokens(answer) == tokens(reference))


def chrf(answer: str, reference: str) -> float:
    """sacrebleu's sentence chrF (Popović 2015; character n-grams up to 6, beta 2), in [0, 1]."""
    return float(_chrf().sentence_score(answer, [reference]).score) / 100


METRICS = {"f1": token_f1, "chrf": chrf, "exact": exact_match}


@lru_cache(maxsize=1)
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
