"""The generated reference page."""

from __future__ import annotations

import pytest

from openrlhf_maestro.config.fields import options
from openrlhf_maestro.config.reference import CONFIGURED, PAGE, page


def rows() -> dict[str, list[str]]:
    """The cells of the page's tables by option, `train` before `sft`."""
    found: dict[str, list[str]] = {}
    for line in page().splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").replace("\\|", "/").split("|")]
            found.setdefault(cells[0].strip("`"), cells[1:])
    return found


def test_the_page_in_docs_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m openrlhf_maestro.config.reference`"


def test_the_page_has_every_option_with_all_its_cells() -> None:
    table = rows()
    for cls in CONFIGURED.values():
        for known in options(cls):
            default, _, meaning, source = table[known.name]
            assert default and meaning and source


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("actor.model_name_or_path", ["**required**", "", "Hugging Face name or folder, or bundled:policy", "ours"]),
        ("rollout.temperature", ["`0.8`", "", "sampling temperature", "paper"]),
        ("actor.adam.betas", ["`[0.9, 0.999]`", "", "decay rates of the two moments", "Trainer default"]),
        ("train.colocate_actor_ref", ["`false`", "", "policy and reference share their GPUs", "OpenRLHF 0.11.2"]),
    ],
)
def test_rows_of_the_page(name: str, cells: list[str]) -> None:
    assert rows()[name] == cells


def test_the_items_of_a_list_option_have_their_own_table() -> None:
    assert "`rewards.components[]`" in page()
    assert "perplexity / entropy" in rows()["rewards.components[].kind"][2]


def test_nothing_but_the_schema_is_in_the_page() -> None:
    declared = {known.name for cls in CONFIGURED.values() for known in options(cls)}
    assert {name for name in rows() if "[]" not in name} == declared
