"""SS-GEN: social stories for autistic children, written from a title and the chapter it belongs to.

The columns are those of the files in the authors' repository. Whether the copy on the hub has the same ones could not
be checked without a network; where it has others, the error lists them.
"""

from __future__ import annotations

from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.data.prepare.recipe import EMPTY_PROMPT, Draft, Dropped, RawRow, Recipe, present


def recipe(config: PrepareConfig) -> Recipe:
    return Recipe(
        title="SS-GEN",
        homepage="https://github.com/MIMIFY/SS-GEN",
        licence="OpenRAIL",
        hub="FMiMiY/SS-GEN",
        convert=_convert,
        columns=("title", "chapter", "explanation", "story_content"),
        open_ended=True,  # many a story fits one title
    )


def _convert(row: RawRow) -> Draft:
    title, chapter, explanation = (row.text(name) for name in ("title", "chapter", "explanation"))
    if not title:
        raise Dropped(EMPTY_PROMPT)
    lines = [
        "Write a Social Story for a child on the autism spectrum.",
        "",
        f"Title: {title}",
        *([f"Chapter: {chapter}"] if chapter else []),
        *([f"About this chapter: {explanation}"] if explanation else []),
        "",
        "Tell it from the child's point of view, in simple and friendly words. Describe what happens and how people "
        "feel, and encourage the child without giving orders.",
    ]
    meta = present(source_id=row.text("id"), chapter=chapter)
    return Draft("\n".join(lines), row.text("story_content"), "ss_gen", split=row.split, meta=meta)
