"""Charts and numbers of the report: the marks are where the data say, and the digits are the right ones."""

from __future__ import annotations

import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from openrlhf_maestro.report.charts import MAX_POINTS, Line, line_chart, smooth, smoothing_window, stacked_chart
from openrlhf_maestro.report.figures import component_colours
from openrlhf_maestro.report.formats import number, percent, points, seconds, signed

# The plot's edges in a panel of 340 x 190 with margins of 44, 10, 10 and 34.
LEFT, RIGHT, TOP, BOTTOM = 44.0, 330.0, 10.0, 156.0


def marks(svg: str, colour: str, tag: str = "path") -> list[ElementTree.Element]:
    """Elements of one colour variable."""
    found = ElementTree.fromstring(svg).iter(tag)
    return [element for element in found if f"var(--{colour})" in element.attrib["style"]]


def points_of(path: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path.attrib["d"])]


def texts(svg: str) -> list[str]:
    return [str(element.text) for element in ElementTree.fromstring(svg).iter("text")]


def test_a_curve_runs_through_its_points() -> None:
    svg = line_chart([Line([0, 5, 10], [0.0, 1.0, 0.25], "c2")], label="curve", y_range=(0, 1))
    (curve,) = marks(svg, "c2")
    assert points_of(curve) == [
        (LEFT, BOTTOM),
        ((LEFT + RIGHT) / 2, TOP),
        (RIGHT, pytest.approx(BOTTOM - 0.25 * (BOTTOM - TOP), abs=0.06)),
    ]


def test_a_gap_stays_a_gap() -> None:
    (curve,) = marks(line_chart([Line([1, 2, 3, 4, 5], [1, 2, math.nan, 2, 1])], label="gap"), "accent")
    assert curve.attrib["d"].count("M") == 2
    assert len(points_of(curve)) == 4


def test_a_single_point_is_a_dot_in_its_place() -> None:
    svg = line_chart([Line([7], [0.5], "c1")], label="dot", y_range=(0, 1))
    (dot,) = marks(svg, "c1", "circle")
    assert (float(dot.attrib["cx"]), float(dot.attrib["cy"])) == ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)


def test_evaluations_are_dots_inside_their_interval() -> None:
    line = Line([0, 10], [0.5, 0.7], low=[0.4, 0.6], high=[0.6, 0.8])
    svg = line_chart([line], label="interval", y_range=(0, 1), smoothed=False, markers=True)
    assert len(marks(svg, "accent", "circle")) == 2
    band = points_of(marks(svg, "accent")[0])
    heights = sorted({round((BOTTOM - y) / (BOTTOM - TOP), 2) for _, y in band})
    assert heights == pytest.approx([0.4, 0.6, 0.8], abs=0.01)


def test_few_points_are_not_smoothed_and_many_are() -> None:
    for count, curves in ((11, 1), (12, 2)):
        values = [float(i % 2) for i in range(count)]
        assert len(marks(line_chart([Line(list(range(count)), values)], label="n"), "accent")) == curves


@pytest.mark.parametrize("window", [1, 3, 5])
def test_smoothing_is_the_mean_of_the_known_neighbours(window: int) -> None:
    values = np.array([1.0, 4.0, math.nan, 10.0, 2.0, 6.0])
    reach = window // 2
    for index, got in enumerate(smooth(values, window)):
        near = [v for v in values[max(0, index - reach) : index + reach + 1] if not math.isnan(v)]
        assert got == pytest.approx(sum(near) / len(near)) if index != 2 else math.isnan(got)


def test_the_window_is_odd_and_grows_with_the_run() -> None:
    windows = [smoothing_window(count) for count in (1, 11, 12, 60, 400, 100_000)]
    assert windows[:2] == [1, 1]
    assert all(window % 2 for window in windows)
    assert windows == sorted(windows)


def test_a_long_run_keeps_its_means_and_stays_light() -> None:
    steps, values = list(range(1, 20_001)), [math.sin(i / 900) for i in range(20_000)]
    svg = line_chart([Line(steps, values)], label="long", y_range=(-1, 1), smoothed=False)
    drawn = points_of(marks(svg, "accent")[0])
    assert len(drawn) <= MAX_POINTS
    assert len(svg) < 20_000
    level = [(BOTTOM - y) / (BOTTOM - TOP) * 2 - 1 for _, y in drawn]
    assert min(level) == pytest.approx(-1, abs=0.02)
    assert max(level) == pytest.approx(1, abs=0.02)


def test_bands_are_stacked_in_their_order_and_cut_at_the_top() -> None:
    svg = stacked_chart([1, 2], [("low", "t0", [1.0, 1.0]), ("high", "t1", [2.0, 9.0])], label="time", top=4.0)
    lower, upper = points_of(marks(svg, "t0")[0]), points_of(marks(svg, "t1")[0])
    # The wide panel is 216 high: the plot reaches from 10 to 182.
    assert {y for _, y in lower} == {182.0, 139.0}
    assert {y for _, y in upper} == {139.0, 53.0, 10.0}


def test_the_logarithmic_axis_has_whole_decades() -> None:
    svg = line_chart([Line([1, 2, 3], [2e-6, 5e-6, 3e-6])], label="log", log=True)
    assert {"1e-6", "1e-5"} <= set(texts(svg))


def test_zeros_on_a_logarithmic_axis_are_gaps() -> None:
    (curve,) = marks(line_chart([Line([1, 2, 3, 4, 5], [1e-6, 2e-6, 0, 1e-6, 2e-6])], label="log", log=True), "accent")
    assert len(points_of(curve)) == 4


def test_the_values_under_the_pointer_are_those_drawn() -> None:
    lines = [
        Line([1, 2, 4], [0.123456, math.nan, 3.0], "c1", name="one"),
        Line([2, 3], [1e-9, 12345.0], "c2", name="</x>"),
    ]
    svg = line_chart(lines, label="values", percent=True)
    assert json.loads(ElementTree.fromstring(svg).attrib["data-readings"]) == {
        "axis": [LEFT, RIGHT, 1, 4],
        "percent": True,
        "steps": [1, 2, 3, 4],
        "lines": [["one", "c1", [0.1235, None, None, 3]], ["</x>", "c2", [None, 1e-9, 12345, None]]],
    }
    assert "</x>" not in svg


@pytest.mark.parametrize(
    ("values", "percent_axis", "expected"),
    [
        ([0.0, 1.0], True, {"0", "50\u202f%", "100\u202f%"}),
        ([0.0, 0.02], True, {"0", "1.0\u202f%", "2.0\u202f%"}),
        ([-1.0, 1.0], False, {"−1.0", "0", "1.0"}),
        ([0.0, 1e-4], False, {"0", "5e-5", "1e-4"}),
        ([0.0, 4000.0], False, {"0", "2,000", "4,000"}),
    ],
)
def test_ticks_have_the_digits_they_need(values: list[float], percent_axis: bool, expected: set[str]) -> None:
    svg = line_chart([Line([1, 2], values)], label="t", y_range=(values[0], values[1]), percent=percent_axis)
    assert expected <= set(texts(svg))


def test_the_description_is_escaped_and_the_drawing_has_no_references() -> None:
    svg = line_chart([Line([1, 2], [1, 1])], label='"><script>alert(1)</script>', reference=1.0)
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).attrib["aria-label"] == '"><script>alert(1)</script>'
    assert not re.search(r"\bid=|href|url\(|#[0-9a-f]{3}", svg)


def test_components_keep_their_colour_from_run_to_run() -> None:
    alone, among = component_colours(["length"]), component_colours(["judge", "length", "rule", "format"])
    assert alone["length"] == among["length"]
    assert len({among[name] for name in ("judge", "length", "rule", "format")}) == 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1.00"),
        (0.0123, "0.0123"),
        (0.001, "0.00100"),
        (0.9999, "1.00"),
        (-12.345, "−12.3"),
        (123456.0, "123\u202f456"),
        (1234567.0, "1.23e6"),
        (0.000456, "4.56e-4"),
        (math.nan, "–"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_signs_percentages_points_and_durations() -> None:
    assert [signed(value) for value in (0.5, -0.5, 0.0)] == ["+0.500", "−0.500", "0"]
    assert [percent(0.625), percent(math.nan)] == ["62.5\u202f%", "–"]
    assert [points(value) for value in (0.09, -0.0667, 0.0001, math.nan)] == ["+9.0", "−6.7", "±0.0", "–"]
    assert [seconds(value) for value in (0.7283, 119.0, 600.0, 9000.0)] == [
        "0.728\u202fs",
        "119\u202fs",
        "10.0\u202fmin",
        "2.50\u202fh",
    ]
