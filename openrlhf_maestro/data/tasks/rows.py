"""Rows of the bundled tasks: distinct prompts, with a split that depends on the prompt alone."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path

from openrlhf_maestro.data.tasks import FAMILIES, Family

SPLITS = ("train", "validation", "test")
_VALIDATION_PERCENT, _TEST_PERCENT = 10, 20
_DRAWS_PER_ROW = 200

Row = dict[str, str]


def split_of(prompt: str) -> str:
    """The split a prompt belongs to: a hash of its text, so that no choice of sizes or seed can leak a prompt."""
    bucket = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big") % 100
    if bucket < _VALIDATION_PERCENT:
        return "validation"
    return "test" if bucket < _VALIDATION_PERCENT + _TEST_PERCENT else "train"


def family_rows(family: Family, sizes: Mapping[str, int], seed: int) -> list[Row]:
    """Distinct rows of one family, `sizes[split]` of each split, in the order they were drawn.

    Raises:
        ValueError: the family has too few distinct prompts for these sizes.
    """
    rng = random.Random(f"{family.name}-{seed}")
    missing = dict(sizes)
    seen: set[str] = set()
    rows: list[Row] = []
    for _ in range(_DRAWS_PER_ROW * sum(sizes.values())):
        if not any(missing.values()):
            return rows
        example = family.example(rng)
        split = split_of(example.prompt)
        if example.prompt in seen or not missing.get(split):
            continue
        seen.add(example.prompt)
        missing[split] -= 1
        rows.append(
            {
                "id": f"{family.name}-{hashlib.blake2b(example.prompt.encode(), digest_size=6).hexdigest()}",
                "datasource": family.name,
                "prompt": example.prompt,
                "reference": example.reference,
                "response": example.response,
                "chosen": example.chosen,
                "rejected": example.rejected,
                "split": split,
            }
        )
    if any(missing.values()):
        raise ValueError(f"family {family.name} has too few distinct prompts: {missing} rows are missing")
    return rows


def task_rows(sizes: Mapping[str, int], seed: int) -> dict[str, list[Row]]:
    """Rows of all families by split, the families mixed: `sizes[split]` rows *per family*. Deterministic by seed."""
    rows = [row for family in FAMILIES.values() for row in family_rows(family, sizes, seed)]
    random.Random(f"order-{seed}").shuffle(rows)
    return {split: [row for row in rows if row["split"] == split] for split in sizes}


def write_jsonl(rows: list[Row], path: Path) -> None:
    """One JSON object a line, UTF-8."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
