"""Which rows are kept, and in which split: duplicates out, then a seeded draw that does not see the order of files.

Rows are known here by digests alone, half a kilobyte each, so that a data set of a million rows fits.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import groupby
from typing import NamedTuple

from openrlhf_maestro.config.prepare import SPLITS
from openrlhf_maestro.data.prepare.recipe import Draft

DUPLICATE = "duplicate"
IN_ANOTHER_SPLIT = "prompt is in another split"
OTHER_REFERENCE = "prompt again, with another reference"
CONFLICT = "prompt again, with a conflicting reference"
NOT_DRAWN = "not drawn"

# Of a prompt in several published splits the row that others evaluate on is kept.
_PRECEDENCE = {"test": 0, "validation": 1, "train": 2, None: 3}


class Entry(NamedTuple):
    """A usable row: digests of its normalised prompt and reference and of all of it, and where it stands."""

    prompt: bytes
    reference: bytes
    content: bytes
    split: str | None
    cluster: bytes | None
    file: int
    number: int

    @property
    def place(self) -> tuple[int, int]:
        return self.file, self.number


def entry(draft: Draft, file: int, number: int) -> Entry:
    content = [draft.prompt, draft.reference, draft.datasource, draft.cluster, draft.id, draft.meta]
    return Entry(
        digest(normalised(draft.prompt)),
        digest(normalised(draft.reference))[:8],
        digest(json.dumps(content, sort_keys=True, ensure_ascii=False, default=str))[:8],
        draft.split,
        digest(normalised(draft.cluster))[:8] if draft.cluster else None,
        file,
        number,
    )


def normalised(text: str) -> str:
    """`text` as two prompts are compared: canonical Unicode, without case and differences of white space."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def distinct(entries: Iterable[Entry], open_ended: bool, dropped: Counter[str]) -> list[Entry]:
    """One entry a prompt; the others are counted in `dropped`.

    Of several the one in the test, then validation, then training split is kept, and among these one that follows from
    the texts alone. Where the references differ and only one can be right (`open_ended` false), none is.
    """
    kept = []
    ordered = sorted(entries, key=lambda one: (one.prompt, _PRECEDENCE[one.split], one.content))
    for _, group in groupby(ordered, key=lambda one: one.prompt):
        first, *others = group
        if not open_ended and any(other.reference != first.reference for other in others):
            dropped[CONFLICT] += 1 + len(others)
            continue
        kept.append(first)
        dropped.update(_reason(first, other) for other in others)
    return kept


def _reason(kept: Entry, other: Entry) -> str:
    if other.split != kept.split:
        return IN_ANOTHER_SPLIT
    return DUPLICATE if other.reference == kept.reference else OTHER_REFERENCE


def draw(
    entries: Sequence[Entry],
    sizes: Mapping[str, Fraction | int] | None,
    seed: int,
    dropped: Counter[str],
    keep_clusters: bool = False,
) -> dict[str, list[Entry]]:
    """The entries of each split, in a random order that follows from `seed` and the prompts alone.

    Entries that name a split stay in it, at most sizes[split] of them (all for no `sizes`). Without splits of their own
    they are divided by `sizes`, as `allotted` has it; with `keep_clusters` by whole clusters. The rest is counted in
    `dropped`.
    """
    ordered = sorted(entries, key=lambda one: _place(seed, one.prompt))
    if any(one.split is not None for one in entries):
        drawn = {split: [one for one in ordered if one.split == split] for split in SPLITS}
        if sizes is not None:
            drawn = {split: drawn[split][: int(sizes.get(split, 0))] for split in SPLITS}
    elif keep_clusters:
        drawn = _by_clusters(ordered, allotted(len(ordered), sizes or {}), seed)
    else:
        drawn, start = {}, 0
        for split, count in allotted(len(ordered), sizes or {}).items():
            drawn[split] = ordered[start : start + count]
            start += count
    if left := len(entries) - sum(map(len, drawn.values())):
        dropped[NOT_DRAWN] += left
    return {split: rows for split, rows in drawn.items() if rows}


def _place(seed: int, key: bytes) -> bytes:
    """What a random order goes by."""
    return hashlib.sha256(f"{seed}:{key.hex()}".encode()).digest()


def _by_clusters(ordered: Sequence[Entry], sizes: Mapping[str, int], seed: int) -> dict[str, list[Entry]]:
    """Each cluster in the split that then lacks most rows, in a random order of the clusters; none where none lacks."""
    clusters: dict[bytes, list[Entry]] = {}
    for one in ordered:
        clusters.setdefault(one.cluster or one.prompt, []).append(one)
    drawn: dict[str, list[Entry]] = {split: [] for split in sizes}
    for key in sorted(clusters, key=lambda key: _place(seed, key)):
        split = max(sizes, key=lambda split: sizes[split] - len(drawn[split]))
        if len(drawn[split]) < sizes[split]:
            drawn[split] += clusters[key]
    return drawn


def are_shares(sizes: Mapping[str, Fraction | int]) -> bool:
    return any(isinstance(size, Fraction) for size in sizes.values())


def allotted(rows: int, sizes: Mapping[str, Fraction | int]) -> dict[str, int]:
    """Rows of each split: `sizes` itself where there are that many rows, else the same proportions of all rows.

    Fractions are shares of the rows, ints are rows. What does not divide goes to the largest remainders, to the
    earlier split where they tie.
    """
    whole = sum(map(Fraction, sizes.values()), Fraction(0))
    if not are_shares(sizes) and whole <= rows:
        return {split: int(size) for split, size in sizes.items()}
    total = rows * whole if are_shares(sizes) else Fraction(rows)
    exact = {split: Fraction(size) * total / whole for split, size in sizes.items()}
    counts = {split: int(quota) for split, quota in exact.items()}
    for split in sorted(exact, key=lambda split: counts[split] - exact[split])[: int(total) - sum(counts.values())]:
        counts[split] += 1
    return counts
