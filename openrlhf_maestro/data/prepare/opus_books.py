"""OPUS Books: aligned sentences of books in sixteen languages, each pair asked in one direction.

A pair is never asked both ways: one of the two would give away the reference of the other across splits.
So the direction follows from the pair as duplicates are compared, without case and white space.
"""

from __future__ import annotations

import json
from typing import Any

from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.data.prepare.drawing import digest, normalised
from openrlhf_maestro.data.prepare.recipe import EMPTY_PROMPT, EMPTY_REFERENCE, Draft, Dropped, RawRow, Recipe
from openrlhf_maestro.errors import ConfigError, DataError

LANGUAGES = {
    "ca": "Catalan",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "eo": "Esperanto",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "it": "Italian",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
}
OTHER_LANGUAGES = "language pair not asked for"
UNTRANSLATED = "translation is the text itself"


def recipe(config: PrepareConfig) -> Recipe:
    wanted = config.opus_books.directions
    unknown = sorted({language for pair in wanted for language in pair if language not in LANGUAGES})
    if unknown:
        raise ConfigError(
            f"opus_books.languages: there is no language {', '.join(unknown)}. There are {', '.join(LANGUAGES)}."
        )

    def convert(row: RawRow) -> Draft:
        texts = _translation(row)
        possible = [pair for pair in _both_ways(texts) if not wanted or pair in wanted]
        if not possible:
            raise Dropped(OTHER_LANGUAGES)
        compared = {language: normalised(text) for language, text in texts.items()}
        key = f"{config.seed}\0{json.dumps(compared, sort_keys=True, ensure_ascii=False)}"
        source, target = possible[digest(key)[0] % len(possible)]
        if not texts[source]:
            raise Dropped(EMPTY_PROMPT)
        if not texts[target]:
            raise Dropped(EMPTY_REFERENCE)
        if texts[source].casefold() == texts[target].casefold():
            raise Dropped(UNTRANSLATED)
        prompt = f"Translate the following text from {LANGUAGES[source]} to {LANGUAGES[target]}:\n\n{texts[source]}"
        return Draft(prompt, texts[target], "opus_books", meta={"from": source, "to": target})

    return Recipe(
        title="OPUS Books",
        homepage="https://huggingface.co/datasets/Helsinki-NLP/opus_books",
        licence="free for personal, educational and research use (OPUS)",
        hub="Helsinki-NLP/opus_books",
        hub_subsets=lambda name: not wanted or any({*pair} == {*name.split("-")} for pair in wanted),
        convert=convert,
        columns=("translation",),
        reads=("translation",),
        sizes={"train": 2000, "validation": 1000, "test": 1000},
        pool="train",
        open_ended=True,  # a short sentence has several translations
    )


def _both_ways(texts: dict[str, str]) -> list[tuple[str, str]]:
    languages = sorted(texts)
    return [(source, target) for source in languages for target in languages if source != target]


def _translation(row: RawRow) -> dict[str, str]:
    """The texts by language; parquet of several pairs under one schema leaves the others null."""
    value: Any = row.values.get("translation")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise DataError(f"{row.where}: `translation` is not JSON.") from None
    if not isinstance(value, dict):
        raise DataError(f"{row.where}: `translation` is a {type(value).__name__}, not texts by language.")
    inner = RawRow(value, row.file, row.number)
    texts = {language: inner.text(language) for language, text in value.items() if text is not None}
    if len(texts) < 2 or not set(texts) <= set(LANGUAGES):
        raise Dropped(OTHER_LANGUAGES)
    return texts
