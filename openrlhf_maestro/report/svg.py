"""From matplotlib's SVG to markup for a page: bare paths and texts, with CSS variables as colours."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from matplotlib.figure import Figure

# Variables of style.css.j2. matplotlib needs real colours: each stands for a variable until the SVG is written.
COLOURS = [f"{kind}{i}" for kind, count in {"c": 8, "r": 8, "t": 5}.items() for i in range(count)]
VARIABLES = ("muted", "rule", "accent", *COLOURS)
PLACEHOLDERS = {name: f"#a1b2{index:02x}" for index, name in enumerate(VARIABLES)}
VARIABLE_OF = {placeholder: name for name, placeholder in PLACEHOLDERS.items()}

POINT_RADIUS = "2.4"
SVG_NAMESPACE = "{http://www.w3.org/2000/svg}"


def colour_of(variable: str) -> str:
    """The colour that stands for a CSS variable while matplotlib draws."""
    return PLACEHOLDERS[variable]


def markup(figure: Figure, label: str, readings: Mapping[str, Any]) -> str:
    """The drawing as one <svg> without ids, definitions or references.

    `label` is what a screen reader says; `readings` goes to charts.js as JSON. Both are escaped.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    # Safe to parse: it comes from matplotlib, a line above.
    drawing = ElementTree.fromstring(buffer.getvalue())
    chart = ElementTree.Element(
        "svg",
        {
            "class": "chart",
            "role": "img",
            "aria-label": label,
            "viewBox": drawing.attrib["viewBox"],
            "data-readings": json.dumps(readings, ensure_ascii=False, separators=(",", ":")),
        },
    )
    # Definitions are clip paths, never used here, and the outlines of points, drawn as circles below.
    defined = {element for definitions in drawing.iter(f"{SVG_NAMESPACE}defs") for element in definitions.iter()}
    for element in drawing.iter():
        kind, given = element.tag.removeprefix(SVG_NAMESPACE), element.attrib
        if element in defined:
            continue
        if kind == "path":
            ElementTree.SubElement(chart, "path", {"d": _rounded(given["d"]), "style": _themed(given["style"])})
        elif kind == "use":
            circle = {"cx": _rounded(given["x"]), "cy": _rounded(given["y"]), "r": POINT_RADIUS}
            ElementTree.SubElement(chart, "circle", circle | {"style": _themed(given["style"])})
        elif kind == "text":
            anchor = re.search(r"text-anchor: (\w+)", given["style"])
            place = {
                "x": _rounded(given["x"]),
                "y": _rounded(given["y"]),
                "text-anchor": anchor[1] if anchor else "start",
            }
            ElementTree.SubElement(chart, "text", place).text = element.text
    return ElementTree.tostring(chart, encoding="unicode")


def _rounded(numbers: str) -> str:
    short = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", numbers)
    return " ".join(short.split())


def _themed(style: str) -> str:
    return re.sub(r"#[0-9a-f]{6}", lambda colour: f"var(--{VARIABLE_OF[colour[0]]})", style)
