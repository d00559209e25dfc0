"""The card of a prepared data set: where its rows are from, how many were kept, and why the others were not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from openrlhf_maestro import __version__
from openrlhf_maestro.config.fields import changed
from openrlhf_maestro.config.prepare import SPLITS, PrepareConfig
from openrlhf_maestro.data.prepare.drawing import are_shares
from openrlhf_maestro.data.prepare.recipe import Recipe

# Raised when the same source and seed would give other rows than before.
VERSION = 1


def make_card(
    config: PrepareConfig,
    recipe: Recipe,
    source: str,
    read: Counter[str],
    dropped: Counter[str],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """What card.yaml says, all but the files that are written.

    `read` counts the rows of each file of the source, `dropped` those of each reason; `rows` are kept, by split.
    """
    kept = sum(map(len, rows.values()))
    assert read.total() == kept + dropped.total(), "a row was lost"
    clusters: dict[str, set[str]] = {}
    for split, written in rows.items():
        for row in written:
            if "cluster" in row["meta"]:
                clusters.setdefault(row["meta"]["cluster"], set()).add(split)
    card = {
        "dataset": config.dataset,
        "title": recipe.title,
        "source": source,
        "homepage": recipe.homepage or None,
        "licence": recipe.licence,
        "caution": recipe.caution if "train" in rows else None,
        "preparation": VERSION,
        "maestro": __version__,
        "seed": config.seed,
        "options": _options(config),
        "files": dict(read),
        "read": read.total(),
        "kept": kept,
        "dropped": dict(sorted(dropped.items(), key=lambda item: (-item[1], item[0]))),
    }
    if clusters:
        shared = sum(len(splits) > 1 for splits in clusters.values())
        card["clusters"] = {"all": len(clusters), "in_several_splits": shared}
    return {name: value for name, value in card.items() if value not in (None, {})}


def _options(config: PrepareConfig) -> dict[str, Any]:
    """What was asked for beside the defaults, without the names of places."""
    names = sorted(changed(config) & {"subset", "sizes", "keep_clusters", "drop_trivial"})
    found = {name: getattr(config, name) for name in names}
    for name, part in (("opus_books", config.opus_books), ("custom", config.custom)):
        found |= {f"{name}.{option}": getattr(part, option) for option in sorted(changed(part))}
    return found


def notes(sizes: Mapping[str, Fraction | int] | None, card: Mapping[str, Any]) -> list[str]:
    """What a user should see beside the counts. `sizes` are those that were asked for."""
    found = [card["caution"]] if "caution" in card else []
    if sizes is not None and not are_shares(sizes) and card["kept"] < sum(sizes.values()):
        asked = [split for split in SPLITS if sizes.get(split)]
        numbers = "/".join(str(int(sizes[split])) for split in asked)
        found.append(f"Fewer rows are left than the splits should have: {numbers} ({'/'.join(asked)}).")
    if card.get("clusters", {}).get("in_several_splits"):
        found.append(
            f"{card['clusters']['in_several_splits']} of {card['clusters']['all']} passages have questions in several "
            "splits; `meta.cluster` tells which rows share one."
        )
    return found
