"""The page in a real browser: opens from disk, filters, sorts, unfolds; hostile responses stay text."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from playwright.sync_api import Browser, Locator, Page, Request, sync_playwright

from openrlhf_maestro.report import write_comparison, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]

COMPONENTS = ("format", "perplexity", "preference")
DATASOURCES = ("counting", "social", "translation")
STEPS, GROUPS, SIZE = 12, 6, 5
ATTACK = "window.pwned=1;alert(1)"
HOSTILE = {
    "image": f"<img src=x onerror={ATTACK}>",
    "end of script": f"</script><script>{ATTACK}</script>",
    "comment": f"<!--<script>{ATTACK}",
    "handler": f"\"' onmouseover='{ATTACK}' autofocus onfocus={ATTACK} x='",
    "frame": f'<iframe srcdoc="<script>parent.{ATTACK}</script>"></iframe><svg/onload={ATTACK}>',
    "link": "<a href=javascript:alert(1)>javascript:alert(1)</a><base href=http://example.invalid/>",
    "template": "{{7*7}} {% raw %} ${7*7}",
    "lines": "one\u2028two\u2029three",
    "controls": "bell\x07 nul\x00 escape\x1b[31m return\r",
    "direction": "abc\u202egpj.exe",
}
# What is shown instead of what a browser would drop or obey.
SHOWN = HOSTILE | {"controls": "bell␇ nul␀ escape␛[31m return␍", "direction": "abc⟨U+202E⟩gpj.exe"}


def make_rows() -> list[dict[str, Any]]:
    """STEPS x GROUPS x SIZE responses; a few raw values are missing (NaN) or at fault (-inf)."""
    rng = np.random.default_rng(7)
    rows = []
    for step in range(1, STEPS + 1):
        for group in range(GROUPS):
            for member in range(SIZE):
                row: dict[str, Any] = {
                    "step": step,
                    "prompt": f"question {step}-{group}",
                    "response": f"<think>thought {step}-{group}-{member}</think><answer>kiwi{member}</answer>",
                    "reference": f"reference {step}-{group}",
                    "datasource": DATASOURCES[group % 3],
                    "group": group,
                    "action": COMPONENTS[member % 3],
                    "scalar_reward": float(rng.random()),
                    "advantage": float(rng.normal()),
                    "truncated": member == 4,
                    "response_tokens": int(rng.integers(1, 90)),
                }
                for name in COMPONENTS:
                    row |= {f"raw_{name}": float(rng.normal()), f"norm_{name}": float(rng.random())}
                    row[f"weight_{name}"] = 1 / 3
                rows.append(row)
    for index in range(0, len(rows), 40):
        rows[index]["raw_perplexity"] = -math.inf
        rows[index + 1]["raw_perplexity"] = math.nan
    return rows


def make_run(folder: Path, rows: list[dict[str, Any]], name: str = "browsed") -> Path:
    for part in ("rollouts", "evaluations"):
        (folder / part).mkdir(parents=True)
    config = {
        "run": {"name": name, "max_steps": STEPS},
        "objective": {"ref_sync_steps": 3},
        "conductor": {"kind": name},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    records = [
        {
            "step": step,
            "time/step_s": 1.0 + step / 10,
            "time/generation_s": 0.5,
            "rollout/tokens": 900 + step,
            "rollout/response_length_mean": 20.0 + step,
            "reward/scalar_mean": 0.5 + step / 100,
            "policy/kl": 0.01 * (step % 3),
            "advantage/frac_zero_std": 0.0,
            **{f"reward/{part}/raw_mean": step / 10 for part in COMPONENTS},
            **{f"conductor/weight/{part}": 1 / 3 + step * (place - 1) / 100 for place, part in enumerate(COMPONENTS)},
            **{f"eval/{part}/accuracy": 0.5 for part in DATASOURCES if step in (1, STEPS)},
            **{f"eval/{part}/n": 10 for part in DATASOURCES if step in (1, STEPS)},
        }
        for step in range(1, STEPS + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for step in {row["step"] for row in rows}:
        at_step = [row for row in rows if row["step"] == step]
        pq.write_table(pa.Table.from_pylist(at_step), folder / "rollouts" / f"step_{step:06d}.parquet")
    for step in (1, STEPS):
        held_out = [
            {
                "step": step,
                "id": str(index),
                "datasource": DATASOURCES[index % 3],
                "prompt": f"held out {index}",
                "response": f"at step {step}",
                "reference": "r",
                # Right at first: 0, 2, 4, ...; at the end: 0, 3, 6, ...
                "right": index % 2 == 0 if step == 1 else index % 3 == 0,
            }
            for index in range(30)
        ]
        pq.write_table(pa.Table.from_pylist(held_out), folder / "evaluations" / f"step_{step:06d}.parquet")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Without a sandbox: Chromium refuses to start as root with one.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return make_rows()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("browser") / "run", rows))


class Opened:
    """A page with everything that went wrong on it."""

    def __init__(self, browser: Browser, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page: Page = self.context.new_page()
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.faults.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._note)
        self.page.goto(path.as_uri())

    def _note(self, request: Request) -> None:
        self.requests.append(request.url)


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Opened]:
    found = Opened(browser, report)
    yield found
    assert found.faults == []
    assert found.requests == [report.as_uri()]
    found.context.close()


def table(page: Page, kind: str = "rollouts") -> Locator:
    return page.locator(f'.browser[data-kind="{kind}"]')


def show_all(root: Locator) -> None:
    more = root.locator('[data-control="more"]')
    while more.is_visible():
        more.click()


def column(root: Locator, cell: str) -> list[str]:
    """The texts of one column, all rows unfolded from paging."""
    show_all(root)
    cells = root.locator("thead th").evaluate_all("all => all.map(one => one.dataset.cell)")
    return root.locator("tbody tr").evaluate_all(
        "(rows, place) => rows.map(row => row.children[place].textContent)", cells.index(cell)
    )


def digits(text: str) -> float:
    return float(text.replace("−", "-").replace("+", ""))


def count(root: Locator) -> str:
    return root.locator('[data-control="count"]').inner_text()


# ── it opens ──


def test_it_opens_from_disk_without_errors_or_requests(opened: Opened) -> None:
    assert opened.page.title() == "browsed · MAESTRO"
    assert opened.page.get_by_text("needs JavaScript").count() == 0
    assert table(opened.page).is_visible()
    assert count(table(opened.page)) == f"{STEPS * GROUPS * SIZE} responses, 25 shown"


def test_without_javascript_the_examples_are_there_and_the_tables_are_not(browser: Browser, report: Path) -> None:
    opened = Opened(browser, report, java_script_enabled=False)
    assert opened.page.locator("#examples .response").count() == len(DATASOURCES) * SIZE
    assert not table(opened.page).is_visible()
    assert opened.page.locator("#responses").get_by_text("needs JavaScript").is_visible()
    opened.context.close()


def test_a_comparison_opens_without_errors(browser: Browser, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    folders = [make_run(tmp_path / name, rows[:5], name) for name in ("one", "two")]
    page = write_comparison(folders, tmp_path / "report.html")
    opened = Opened(browser, page)
    assert opened.page.get_by_role("row", name="conductor.kind one two").is_visible()
    opened.page.set_viewport_size({"width": 390, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert (opened.faults, opened.requests) == ([], [page.as_uri()])
    opened.context.close()


def test_a_chart_says_the_values_under_the_pointer(opened: Opened) -> None:
    chart = opened.page.locator('svg[aria-label^="Reward weights, all prompts"]')
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    # Step 12 lies at the right end of the axis, 10 units of 340 from the edge.
    opened.page.mouse.move(box["x"] + box["width"] * 328 / 340, box["y"] + box["height"] / 2)
    tip = opened.page.locator(".tip")
    # 1/3 + 12 (place - 1) / 100
    assert tip.locator("b, span").all_inner_texts() == [
        "step 12",
        "format 0.2133",
        "perplexity 0.3333",
        "preference 0.4533",
    ]
    opened.page.mouse.move(2, 2)
    assert tip.is_hidden()


# ── sort, filter, search ──

SORTS = {
    "advantage": ("advantage", "advantage"),
    "scalar reward": ("scalar_reward", "reward"),
    "length": ("response_tokens", "tokens"),
    "preference, raw value": ("raw_preference", "sorted"),
    "format, normalised value": ("norm_format", "sorted"),
}


@pytest.mark.parametrize("choice", SORTS)
def test_sorting_gives_the_order_of_the_values(opened: Opened, rows: list[dict[str, Any]], choice: str) -> None:
    key, cell = SORTS[choice]
    root = table(opened.page)
    root.get_by_label("Sort by").select_option(choice)
    expected = sorted((row[key] for row in rows), reverse=True)
    got = [digits(text.removesuffix(" cut")) for text in column(root, cell)]
    assert got == pytest.approx(expected, rel=6e-3)
    root.get_by_role("button", name="descending").click()
    assert [digits(text.removesuffix(" cut")) for text in column(root, cell)] == pytest.approx(expected[::-1], rel=6e-3)


def test_missing_values_stand_last_both_ways_and_faults_are_the_lowest(
    opened: Opened, rows: list[dict[str, Any]]
) -> None:
    root = table(opened.page)
    root.get_by_label("Sort by").select_option("perplexity, raw value")
    marked = len(range(0, len(rows), 40))
    down = column(root, "sorted")
    assert down[-2 * marked :] == ["−∞"] * marked + ["–"] * marked
    root.get_by_role("button", name="descending").click()
    up = column(root, "sorted")
    assert (up[:marked], up[-marked:]) == (["−∞"] * marked, ["–"] * marked)


def test_the_header_buttons_sort_by_keyboard_and_say_so(opened: Opened, rows: list[dict[str, Any]]) -> None:
    root, keyboard = table(opened.page), opened.page.keyboard
    root.get_by_role("button", name="Reset").focus()
    header = root.locator('th[data-cell="advantage"]')
    for _ in range(8):
        keyboard.press("Tab")
        if header.locator("button").evaluate("one => one === document.activeElement"):
            break
    assert header.locator("button").evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert digits(column(root, "advantage")[0]) == pytest.approx(max(row["advantage"] for row in rows), rel=6e-3)
    header.locator("button").focus()
    keyboard.press("Space")
    assert header.get_attribute("aria-sort") == "ascending"
    assert digits(column(root, "advantage")[0]) == pytest.approx(min(row["advantage"] for row in rows), rel=6e-3)
    assert root.locator("th[aria-sort]").count() == 1


def test_filters_and_search_leave_what_matches(opened: Opened) -> None:
    root = table(opened.page)
    total = STEPS * GROUPS * SIZE
    root.get_by_label("Data set").select_option("social")
    assert count(root) == f"{total // 3} of {total} responses, 25 shown"
    root.get_by_label("Step", exact=True).select_option("7")
    assert count(root) == f"{2 * SIZE} of {total} responses, {2 * SIZE} shown"
    assert set(column(root, "datasource")) == {"social"}
    assert set(column(root, "toggle")) == {"7"}
    root.get_by_label("Search").fill("KIWI3")
    assert column(root, "response") == ["thought 7-1-3 kiwi3", "thought 7-4-3 kiwi3"]
    root.get_by_label("Search").fill("no such text")
    assert count(root) == f"0 of {total} responses, 0 shown"
    root.get_by_role("button", name="Reset").click()
    assert count(root) == f"{total} responses, 25 shown"
    root.get_by_label("Search").fill("reference 3-2")
    assert count(root) == f"{SIZE} of {total} responses, {SIZE} shown"


def test_more_rows_come_by_button_and_the_focus_follows(opened: Opened) -> None:
    root = table(opened.page)
    root.get_by_role("button", name="Show 25 more").press("Enter")
    assert root.locator("tbody tr").count() == 50
    assert root.locator("tbody .toggle").nth(25).evaluate("one => one === document.activeElement")


def test_the_held_out_responses_can_be_filtered_by_what_became_of_them(opened: Opened) -> None:
    opened.page.get_by_text("held-out responses of the last evaluation").click()
    root = table(opened.page, "evaluation")
    expected = {
        "right": [i for i in range(30) if i % 3 == 0],
        "wrong": [i for i in range(30) if i % 3],
        "wrong before, right now": [i for i in range(30) if i % 2 and i % 3 == 0],
        "right before, wrong now": [i for i in range(30) if i % 2 == 0 and i % 3],
        "no verdict": [],
    }
    for choice, matching in expected.items():
        root.get_by_label("Verdict").select_option(choice)
        assert count(root).split()[0] == str(len(matching))
    root.get_by_label("Verdict").select_option("wrong before, right now")
    root.locator("tbody .toggle").first.click()
    assert "at step 1: wrong" in root.locator(".detail").inner_text()


# ── one response ──


def test_a_row_unfolds_by_keyboard_and_shows_everything(opened: Opened, rows: list[dict[str, Any]]) -> None:
    root = table(opened.page)
    wanted = rows[123]
    root.get_by_label("Search").fill(wanted["response"].split("<answer>")[0].removeprefix("<think>").split("<")[0])
    toggle = root.locator("tbody .toggle").first
    assert toggle.get_attribute("aria-expanded") == "false"
    toggle.focus()
    opened.page.keyboard.press("Enter")
    assert toggle.get_attribute("aria-expanded") == "true"
    detail = root.locator(".detail")
    for key in ("prompt", "reference", "response"):
        assert wanted[key] in detail.inner_text()
    bars = detail.locator(".bars tbody tr")
    assert bars.count() == len(COMPONENTS)
    for place, name in enumerate(COMPONENTS):
        shares = (
            bars.nth(place)
            .locator(".bar i")
            .evaluate_all(
                "all => all.map(one => parseFloat(getComputedStyle(one, '::before').width) / one.offsetWidth)"
            )
        )
        assert shares == pytest.approx([wanted[f"norm_{name}"], wanted[f"weight_{name}"]], abs=0.02)
    toggle.press("Enter")
    assert detail.count() == 0


# ── hostile responses ──


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    """A run of which every text that a model or a data set can choose is hostile."""
    changed = []
    for index, row in enumerate(rows[: len(HOSTILE) * SIZE]):
        kind = list(HOSTILE)[index // SIZE]
        texts = dict.fromkeys(("prompt", "response", "reference"), HOSTILE[kind])
        changed.append(row | texts | {"group": index // SIZE, "step": 1, "datasource": HOSTILE["image"] + kind})
    changed[-1]["response"] = "<script>" + "y" * 200_000
    folder = make_run(tmp_path_factory.mktemp("hostile") / "run", changed, name=HOSTILE["end of script"])
    return write_report(folder)


def test_hostile_responses_cannot_run_script_and_are_shown_as_text(browser: Browser, hostile: Path) -> None:
    opened = Opened(browser, hostile)
    page, root = opened.page, table(opened.page)
    show_all(root)
    for toggle in root.locator("tbody .toggle").all():
        toggle.click()
    page.get_by_text("held-out responses of the last evaluation").click()
    shown = root.locator(".detail .response > .text").evaluate_all("all => all.map(one => one.textContent)")
    assert shown[:-1] == [SHOWN[kind] for kind in HOSTILE for _ in range(SIZE)][:-1]
    assert shown[-1].startswith("<script>yyy")
    assert shown[-1].endswith("y … (180,008 more characters)")
    page.mouse.move(400, 400)
    page.wait_for_timeout(200)
    assert page.evaluate("window.pwned") is None
    assert page.locator("img, iframe, base, a[href^=javascript]").count() == 0
    assert page.locator("script").count() == 3
    assert (opened.faults, opened.requests) == ([], [hostile.as_uri()])
    opened.context.close()


def test_a_script_that_got_into_the_page_would_not_run(browser: Browser, report: Path, tmp_path: Path) -> None:
    """The second line of defence: the policy, with the escaping out of the way."""
    broken = tmp_path / "broken.html"
    text = report.read_text(encoding="utf-8")
    broken.write_text(text.replace("<main", f"<script>{ATTACK}</script><img src=x onerror={ATTACK}><main", 1))
    opened = Opened(browser, broken)
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("window.pwned") is None
    assert any("Content Security Policy" in fault for fault in opened.faults)
    assert not any(fault.startswith("dialog") for fault in opened.faults)
    assert table(opened.page).is_visible()
    opened.context.close()


# ── looks ──


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_sticks_out_of_a_narrow_screen(browser: Browser, report: Path, hostile: Path, width: int) -> None:
    for path in (report, hostile):
        opened = Opened(browser, path, viewport={"width": width, "height": 800})
        opened.page.get_by_text("held-out responses of the last evaluation").click()
        for kind in ("rollouts", "evaluation"):
            table(opened.page, kind).locator("tbody .toggle").first.click()
        table(opened.page).get_by_label("Sort by").select_option("perplexity, normalised value")
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        opened.context.close()


def luminance(colour: str) -> float:
    """WCAG 2: relative luminance of an rgb(...) colour."""
    channels = [float(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(browser: Browser, report: Path, scheme: Any) -> None:
    opened = Opened(browser, report, color_scheme=scheme)
    table(opened.page).locator("tbody .toggle").first.click()
    pairs = opened.page.evaluate(
        """() => {
          const background = (node) => {
            for (; node; node = node.parentElement) {
              const colour = getComputedStyle(node).backgroundColor;
              if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
            }
          };
          const chosen = "h1, h2, h3, h3 span, p, dt, dd, th, td, td small, a, button, label, select, input, " +
            "summary, figcaption, caption, .good, .bad, .text, .text code, .count, .legend li, footer";
          return [...document.querySelectorAll(chosen)].filter((one) => one.offsetParent && one.textContent.trim())
            .map((one) => [one.tagName + "." + one.className, getComputedStyle(one).color, background(one)]);
        }"""
    )
    dark_page = luminance(opened.page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.05
    assert dark_page == (scheme == "dark")
    assert len(pairs) > 200
    poor = set()
    for name, ink, paper in pairs:
        high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
        if (high + 0.05) / (low + 0.05) < 4.5:
            poor.add((name, ink, paper))
    assert poor == set()
    opened.context.close()


def test_every_control_has_a_name(opened: Opened) -> None:
    opened.page.get_by_text("held-out responses of the last evaluation").click()
    for role in ("button", "combobox", "searchbox"):
        controls = opened.page.get_by_role(role, include_hidden=False).all()
        assert controls
        for control in controls:
            said = control.evaluate("one => one.ariaLabel || one.labels?.[0]?.innerText || one.innerText")
            assert said.strip()


# ── speed ──


def test_ten_thousand_responses_make_a_page_in_seconds_and_sort_at_once(browser: Browser, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        row | {"step": 1 + index // 200, "group": index % 200 // SIZE, "scalar_reward": float(rng.random())}
        for index, row in enumerate(make_rows() * 28)
    ][:10_000]
    folder = make_run(tmp_path / "run", rows)
    start = time.perf_counter()
    page = write_report(folder)
    assert time.perf_counter() - start < 20
    assert page.stat().st_size < 3_000_000
    opened = Opened(browser, page)
    assert opened.faults == []
    took_ms = opened.page.evaluate(
        """() => {
          const button = document.querySelector('.browser[data-kind="rollouts"] th[data-cell="reward"] button');
          const start = performance.now();
          button.click();
          return performance.now() - start;
        }"""
    )
    assert took_ms < 500
    opened.context.close()
