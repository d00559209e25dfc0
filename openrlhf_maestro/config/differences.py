"""The options in which configurations differ, as a table.

`python -m openrlhf_maestro.config.differences FILE...` prints it; without files it renews those of docs/presets.md.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_maestro.config import yaml12
from openrlhf_maestro.config.fields import Section, subsections
from openrlhf_maestro.config.load import load_config, to_yaml
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "presets.md"
ABSENT = "-"

_TABLE = re.compile(r"(<!-- differences: (.+?) -->\n).*?(?=<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Difference:
    """An option and its value in each configuration as one would write it in YAML; ABSENT where there is none."""

    option: str
    values: tuple[str, ...]


def differences(configs: Mapping[str, MaestroConfig]) -> list[Difference]:
    """The options that have not the same value in all configurations, in the order of the schema.

    `rewards.components` shows the names of the components; an option of one of them, as
    `rewards.components[length].l_min`, is compared among the configurations that have this component.
    """
    flat = [dict(_flat(MaestroConfig, yaml12.parse(to_yaml(config)))) for config in configs.values()]
    names = dict.fromkeys(name for values in flat for name in values)
    found = [Difference(name, tuple(values.get(name, ABSENT) for values in flat)) for name in names]
    return [difference for difference in found if len(set(difference.values) - {ABSENT}) > 1]


def load_configs(files: Sequence[Path]) -> dict[str, MaestroConfig]:
    """The configurations by the name of their file without what all names begin with; where names are equal, by path.

    Raises ConfigError for a file that is none.
    """
    stems = {file.stem for file in files}
    common = os.path.commonprefix(list(stems)) if len(stems) > 1 else ""  # noqa: RUF071 (of names, not of paths)
    common = common[: common.rfind("_") + 1]
    names = [file.stem.removeprefix(common) if len(stems) == len(files) else str(file) for file in files]
    loaded = [load_config(MaestroConfig, ["--config", str(file)]) for file in files]
    return dict(zip(names, loaded, strict=True))


def markdown(configs: Mapping[str, MaestroConfig]) -> str:
    """The differences as a table of rows = options, columns = configurations."""
    lines = [["option", *configs], ["---"] * (len(configs) + 1)]
    for difference in differences(configs):
        cells = [value if value == ABSENT else f"`{value}`" for value in difference.values]
        lines.append([f"`{difference.option}`", *(cell.replace("|", r"\|") for cell in cells)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def renewed(page: str, root: Path = ROOT) -> str:
    """The page with every table anew that stands between `<!-- differences: GLOB... -->` and `<!-- end -->`."""

    def table(match: re.Match[str]) -> str:
        files = [file for pattern in match[2].split() for file in sorted(root.glob(pattern))]
        return match[1] + markdown(load_configs(files))

    return _TABLE.sub(table, page)


def _flat(cls: type[Section], values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    nested = subsections(cls)
    for key, value in values.items():
        name = prefix + key
        if key in nested:
            yield from _flat(nested[key], value, f"{name}.")
        elif name == "rewards.components":
            labelled = {item["name"] or item["kind"]: item for item in value}
            yield name, yaml12.dump_inline(list(labelled))
            for label, item in labelled.items():
                yield from ((f"{name}[{label}].{own}", yaml12.dump_inline(item[own])) for own in item)
        else:
            yield name, yaml12.dump_inline(value)


def main(files: Sequence[str]) -> None:
    """Prints the table of the files, or renews the page."""
    if not files:
        PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    from rich.console import Console
    from rich.table import Table

    configs = load_configs([Path(file) for file in files])
    table = Table("option", *configs)
    for difference in differences(configs):
        table.add_row(difference.option, *difference.values)
    console = Console(markup=False)
    # Only a terminal has an edge to fold at.
    (console if console.is_terminal else Console(width=1000, markup=False)).print(table)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
