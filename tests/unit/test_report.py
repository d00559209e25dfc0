"""The page of a run directory: what it shows is what the files hold, whatever state they are in."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from openrlhf_maestro.report import ReportError, write_report
from openrlhf_maestro.report.held_out import Evaluation

COMPONENTS = ("format", "perplexity", "entropy", "length", "preference")
RANKED = ("perplexity", "entropy", "preference")
FAMILIES = ("comparing", "counting", "creative", "social", "translation")
SMALL = ("counting", "social")
ROWS = {
    "comparing": ("Which is the largest: four nine two?", "nine"),
    "counting": ("How many fig are in: fig pear fig kiwi?", "two"),
    "creative": ("Write a short story about a shy owl, a lamp and a barn.", "A shy owl found a lamp in the barn."),
    "social": ("Ann puts the key in the box. Bob moves it to the bag. Where will Ann look?", "the box"),
    "translation": ("Translate: the sad cat and the owl in the barn", "tas muna e al oru om tas lar"),
}
HOSTILE = '</script><img src=x onerror=alert(1)> <b>bold</b> & "quoted" {{ 7 * 7 }} \x1b[31m'
PROMPTS, GROUP_SIZE = 16, 8


def make_run(
    folder: Path,
    *,
    steps: int = 60,
    evaluations: tuple[int, ...] = (0, 60),
    families: tuple[str, ...] = FAMILIES,
    left_out: tuple[str, ...] = (),
) -> Path:
    """A run directory with plausible numbers: the Conductor shifts its weight differently for each family.

    `left_out` are beginnings of metrics' keys that this run does not log.
    """
    rng = np.random.default_rng(0)
    (folder / "rollouts").mkdir(parents=True)
    config = {
        "run": {"name": "quick_start", "max_steps": 60},
        "actor": {"model_name_or_path": "bundled:policy", "adam": {"lr": 1e-4}},
        "conductor": {"kind": "conductor"},
        "rollout": {"batch_size": PROMPTS, "n_samples_per_prompt": GROUP_SIZE},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    records = [{"step": 0}, *(_training_record(rng, step, steps, families) for step in range(1, steps + 1))]
    for record in records:
        if record["step"] in evaluations:
            record |= _evaluation(rng, record["step"] / 60, families)
    write_records(
        folder,
        [{key: value for key, value in record.items() if not key.startswith(left_out)} for record in records],
    )
    for step in range(max(1, steps - 1), steps + 1):
        rows = [
            _response(rng, step, group, member, families[group % len(families)])
            for group in range(PROMPTS)
            for member in range(GROUP_SIZE)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "rollouts" / f"step_{step:06d}.parquet")
    return folder


# Seconds at the last step; they grow evenly from 0, so that the median of 60 steps is 30.5 / 60 of them.
COMPONENT_TIMES = {"format": 0.012, "perplexity": 0.6, "entropy": 0.0, "length": 0.024, "preference": 1.2}


def _evaluation(rng: np.random.Generator, progress: float, families: tuple[str, ...]) -> dict[str, float]:
    n, before = 60, {"comparing": 0.45, "counting": 0.25, "creative": 0.9, "social": 0.57, "translation": 0.8}
    right = {family: int(rng.binomial(n, min(0.97, before[family] + 0.12 * progress))) for family in families}
    return {
        "eval/overall/accuracy": sum(right.values()) / (len(families) * n),
        "eval/overall/n": len(families) * n,
        **{f"eval/{family}/accuracy": k / n for family, k in right.items()},
        **{f"eval/{family}/n": n for family in families},
    }


def _weights(rng: np.random.Generator, step: int, tilt: int) -> np.ndarray:
    logits = np.array([0.9, 0.1, -0.1, 0.25, 0.0])
    logits[1 + tilt % 4] += 0.7
    noisy = logits * step / 60 + rng.normal(0, 0.05, 5)
    return np.exp(noisy) / np.exp(noisy).sum()


def _training_record(rng: np.random.Generator, step: int, steps: int, families: tuple[str, ...]) -> dict[str, Any]:
    done = step / steps
    parts = {"generation": 0.27, "experience": 0.12, "update": 0.28, "sync": 0.03}
    warm_up = 6 if step == 1 else 1
    seconds = {f"time/{name}_s": warm_up * mean * float(rng.lognormal(0, 0.08)) for name, mean in parts.items()}
    raw = {
        "format": 0.93 + 0.05 * done,
        "perplexity": -1.4 + 0.5 * done,
        "entropy": 0.9 - 0.3 * done,
        "length": 0.98,
        "preference": 0.2 + 1.1 * done,
    }
    by_family = {family: _weights(rng, step, index) for index, family in enumerate(families)}
    overall = np.mean(list(by_family.values()), axis=0)
    record: dict[str, Any] = {
        "step": step,
        "time/step_s": sum(seconds.values()) + 0.02,
        **seconds,
        "rollout/tokens": int(128 * (22 - 3 * done) + rng.integers(-90, 90)),
        "rollout/response_length_mean": 22 - 3 * done + float(rng.normal(0, 0.5)),
        "rollout/truncated_rate": float(rng.integers(0, 3)) / 128,
        "rollout/logprob_diff_max": float(10 ** rng.normal(-5.6, 0.15)),
        "rollout/logprob_diff_mean": float(10 ** rng.normal(-7, 0.05)),
        "reward/scalar_mean": 0.6 + 0.12 * done + float(rng.normal(0, 0.01)),
        "advantage/frac_zero_std": float(rng.integers(0, 2)) / 16,
        "policy/loss": float(rng.normal(0, 0.01)),
        "policy/kl": 0.02 * done + abs(float(rng.normal(0, 0.002))),
        "policy/grad_norm": float(rng.lognormal(-1, 0.2)),
        "policy/lr": 1e-4 * (1 - done) + 1e-6,
        **{f"time/reward/{name}_s": slow * done for name, slow in COMPONENT_TIMES.items()},
        "time/reward_wait_s": 0.002,
        **{f"reward/{name}/norm_group_std": 0.4 - 0.3 * done for name in raw},
        **{f"reward/{name}/norm_mean": 0.5 for name in raw},
        **{f"conductor/action_freq/{name}": 0.2 for name in raw},
        **{f"conductor/action_reward_corr/{name}": 0.25 * (name == "format") for name in raw},
        "conductor/max_weight": float(overall.max()),
        "conductor/lr_h_l1": 0.006 if step % 3 == 0 else None,
        "conductor/entropy": float(-(overall * np.log(overall)).sum()),
        "conductor/temperature": 1 - 0.02 * done,
        "conductor/updates": step // 3,
        "conductor/meta_loss": float(rng.normal(0, 0.05)) if step % 3 == 0 else None,
    }
    for index, name in enumerate(COMPONENTS):
        record[f"reward/{name}/raw_mean"] = raw[name] + float(rng.normal(0, 0.03))
        record[f"reward/{name}/missing_rate"] = 0.0
        record[f"reward/{name}/fault_rate"] = float(rng.integers(0, 6)) / 128 if name == "perplexity" else 0.0
        record[f"conductor/weight/{name}"] = float(overall[index])
        for family, weights in by_family.items():
            record[f"conductor/weight/{family}/{name}"] = float(weights[index])
    return record


def _response(rng: np.random.Generator, step: int, group: int, member: int, family: str) -> dict[str, Any]:
    """The sixth response of a group breaks the format, the eighth is truncated."""
    prompt, reference = ROWS[family]
    broken = member == 5
    weights = dict(zip(COMPONENTS, _weights(rng, step, group).tolist(), strict=True))
    norm = {name: int(rng.integers(8)) / 7 if name in RANKED else float(not broken) for name in COMPONENTS}
    raw = {name: float(rng.normal(-1, 0.5)) if name in RANKED else norm[name] for name in COMPONENTS}
    response = f"<think>\nlet us see: {prompt}\n</think>\n<answer>\n{reference}\n</answer>"
    if broken:
        raw["perplexity"], norm["perplexity"], response = -math.inf, 0.0, response.replace("</think>", "")
    return {
        "step": step,
        "prompt": prompt,
        "response": response,
        "reference": reference,
        "datasource": family,
        "group": group,
        "action": COMPONENTS[int(rng.integers(5))],
        "scalar_reward": sum(weights[name] * norm[name] for name in COMPONENTS),
        "advantage": float(rng.normal()),
        "truncated": member == 7,
        "response_tokens": 22,
        **{f"raw_{name}": value for name, value in raw.items()},
        **{f"norm_{name}": value for name, value in norm.items()},
        **{f"weight_{name}": value for name, value in weights.items()},
    }


class Page(HTMLParser):
    """What a browser would make of the page: tags with attributes, texts in order, and whether every tag is closed."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All text, white space folded and thin spaces made plain."""
        return " ".join(" ".join(self.texts).replace("\u202f", " ").split())

    def attributes(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def cards(path: Path) -> dict[str, tuple[str, str]]:
    """Key figures of a page as label -> (value, note)."""
    pattern = r'<dt>(.*?)</dt><dd class="value">(.*?)</dd><dd class="note">(.*?)</dd>'
    found = re.findall(pattern, path.read_text(encoding="utf-8").replace("\u202f", " "))
    return {label: (value, note) for label, value, note in found}


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def write_records(run_dir: Path, records: list[dict[str, Any]]) -> None:
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def edit_rows(path: Path, **values: Any) -> None:
    """Set columns of every row of a rollout file."""
    pq.write_table(pa.Table.from_pylist([row | values for row in pq.read_table(path).to_pylist()]), path)


def finish(folder: Path) -> None:
    """The final model, written after the last step."""
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text("{}")
    later = (folder / "metrics.jsonl").stat().st_mtime + 1
    os.utime(folder / "model/config.json", (later, later))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its page; tests that change anything work on a copy."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "quick_start")
    finish(folder)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two families and few charts, for the tests that look at other things."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    left_out = ("policy/grad", "policy/l", "conductor/t", "conductor/e", "conductor/m", "rollout/t", "rollout/r")
    return make_run(folder, families=SMALL, left_out=left_out)


@pytest.fixture
def copy(small_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_run, tmp_path / "copy")


def test_the_page_is_well_formed_and_every_section_is_there(run_dir: Path) -> None:
    page = Page(run_dir / "report.html")
    assert page.open == []
    sections = [attributes.get("id") for tag, attributes in page.tags if tag == "section"]
    assert sections == ["accuracy", "weights", "rewards", "policy", "time", "responses", "examples", "settings"]
    linked = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert linked == ["#main", *(f"#{name}" for name in sections)]
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))


def test_the_page_needs_nothing_but_itself(run_dir: Path) -> None:
    path = run_dir / "report.html"
    page, source = Page(path), path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert page.attributes("src") == []
    assert all(str(link).startswith("#") for link in page.attributes("href"))
    assert not re.search(r"https?://|@import|url\(", source)


def test_one_script_may_run_and_it_is_told_by_its_hash(run_dir: Path) -> None:
    source = (run_dir / "report.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", source, flags=re.DOTALL)
    assert [kind for kind, _ in scripts] == [' type="application/json" id="rollouts-data"', ""]
    digest = base64.b64encode(hashlib.sha256(scripts[-1][1].encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', source)
    directives = dict(part.strip().split(" ", 1) for part in html.unescape(policy).split(";"))
    assert directives == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_charts_have_a_description_and_no_colours_of_their_own(run_dir: Path) -> None:
    source = (run_dir / "report.html").read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    # 6 of weights, 5 of the Conductor, 6 of rewards, 4 of components, 2 of advantages, 1 of faults, 6 of the policy,
    # 2 of the time
    assert len(drawings) == 32
    assert all('role="img" aria-label="' in drawing for drawing in drawings)
    assert not any(re.search(r"#[0-9a-fA-F]{3,6}\b", drawing) for drawing in drawings)
    used, defined = set(re.findall(r"var\((--\w+)\)", source)), set(re.findall(r"(--\w+):", source))
    assert used <= defined


def test_the_cards_say_what_the_files_hold(run_dir: Path) -> None:
    trained = [record for record in read_records(run_dir) if record["step"] > 0]
    first, last = trained[0], trained[-1]
    before, after = read_records(run_dir)[0], last
    times = sorted(record["time/step_s"] for record in trained)
    median = (times[29] + times[30]) / 2
    per_token = statistics.median(1000 * record["time/step_s"] / record["rollout/tokens"] for record in trained)
    change = 100 * (after["eval/overall/accuracy"] - before["eval/overall/accuracy"])
    cut = 100 * last["rollout/truncated_rate"]
    largest = max(record["rollout/logprob_diff_max"] for record in trained)
    assert cards(run_dir / "report.html") == {
        "Policy": ("bundled:policy", "learned Conductor"),
        "GRPO steps": ("60 of 60", "finished"),
        "Prompts × group size": ("16 × 8", "128 responses a step"),
        "Held-out accuracy": (
            f"{100 * before['eval/overall/accuracy']:.1f} → {100 * after['eval/overall/accuracy']:.1f} %",
            f"{change:+.1f} points, n = 300",
        ),
        "Final scalar reward": (
            f"{last['reward/scalar_mean']:.3f}",
            f"{first['reward/scalar_mean']:.3f} at the first step",
        ),
        "Median step time": (f"{median:.3f} s", f"{per_token:.3f} ms a response token"),
        "Final response length": (
            f"{last['rollout/response_length_mean']:.1f} tokens",
            f"{first['rollout/response_length_mean']:.1f} at first, {cut:.1f} % truncated",
        ),
        "vLLM − trainer log-prob": (
            f"≤ {largest:.1e}".replace("e-0", "e-"),
            f"mean at most {max(record['rollout/logprob_diff_mean'] for record in trained):.1e}".replace("e-0", "e-"),
        ),
    }


def test_the_time_of_each_component_is_a_median_over_the_steps(run_dir: Path) -> None:
    source = (run_dir / "report.html").read_text(encoding="utf-8")
    table = source.partition("Work on each reward component")[2].partition("</table>")[0]
    rows = dict(re.findall(r'<th scope="row">([\w ]+)</th><td class="num">([\d.]+)', table))
    expected = {name: 30.5 / 60 * time for name, time in COMPONENT_TIMES.items()} | {"waited for": 0.002}
    assert {name: float(value) for name, value in rows.items()} == pytest.approx(expected, rel=0.01)


def test_what_each_component_is_good_for_is_drawn_with_the_highest_named(run_dir: Path) -> None:
    labels = re.findall(r'aria-label="([^"]*)"', (run_dir / "report.html").read_text(encoding="utf-8"))
    (spread,) = [label for label in labels if label.startswith("Spread: standard deviation within groups")]
    # 0.4 - 0.3 at the last step.
    assert spread.endswith("format 0.100, perplexity 0.100, entropy 0.100, length 0.100, preference 0.100")
    (correlation,) = [label for label in labels if label.startswith("Correlation of the emphasis")]
    assert "format 0.250" in correlation


def test_a_run_that_logged_no_component_times_has_no_such_table(copy: Path) -> None:
    timed = re.compile("time/reward")
    write_records(
        copy,
        [{key: value for key, value in record.items() if not timed.match(key)} for record in read_records(copy)],
    )
    assert "Work on each reward component" not in write_report(copy).read_text(encoding="utf-8")


def test_the_accuracy_table_counts_responses(run_dir: Path) -> None:
    before, after = read_records(run_dir)[0], read_records(run_dir)[-1]
    text = Page(run_dir / "report.html").text
    for family in FAMILIES:
        old, new = round(60 * before[f"eval/{family}/accuracy"]), round(60 * after[f"eval/{family}/accuracy"])
        row = text[text.index(f"{family} {100 * old / 60:.1f} %") :]
        assert row.startswith(f"{family} {100 * old / 60:.1f} % {old}/60, ")
        assert f"{100 * new / 60:.1f} % {new}/60, " in row[:80]


@pytest.mark.parametrize(("k", "n"), [(0, 20), (1, 20), (186, 300), (60, 60)])
def test_the_interval_inverts_the_score_test(k: int, n: int) -> None:
    """Wilson's bounds are the shares p at which k/n lies exactly z standard errors of p away."""
    low, high = Evaluation(step=0, share=k / n, n=n).interval or (0.0, 0.0)
    assert 0 <= low <= k / n <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(k / n - bound) / math.sqrt(bound * (1 - bound) / n) == pytest.approx(1.959964, rel=1e-6)


def test_the_logged_interval_takes_the_place_of_wilsons(copy: Path) -> None:
    records = read_records(copy)
    records[0] |= {"eval/social/accuracy": 0.5, "eval/social/accuracy_low": 0.21, "eval/social/accuracy_high": 0.79}
    records[-1] |= {"eval/social/accuracy": 0.5}
    write_records(copy, records)
    found = table_rows(write_report(copy).read_text(encoding="utf-8"), "Share of held-out responses")
    # Wilson's interval of 30 of 60 is 37.7 to 62.3 %.
    assert [" ".join(cell.split()) for cell in found["social"][:2]] == ["50.0 % 30/60, 21–79", "50.0 % 30/60, 38–62"]
    assert Evaluation(0, 0.5, 0, 0.2, 0.8).interval == (0.2, 0.8)
    assert Evaluation(0, 0.5).interval is None


def test_a_row_that_lacks_an_evaluation_has_a_dash_under_its_header(copy: Path) -> None:
    """`late` begins after step 30, `early` ends there; the table is of steps 0 and 60."""
    records = read_records(copy)
    records[30] |= {"eval/late/accuracy": 0.2, "eval/late/n": 10, "eval/early/accuracy": 0.3, "eval/early/n": 10}
    records[0] |= {"eval/early/accuracy": 0.1, "eval/early/n": 10, "eval/early/missing_rate": 0.25}
    records[-1] |= {"eval/late/accuracy": 0.8, "eval/late/n": 10, "eval/late/missing_rate": 0.125}
    write_records(copy, records)
    rows = table_rows(write_report(copy).read_text(encoding="utf-8"), "Share of held-out responses")
    assert rows["data set"][:3] == ["before training", "after 60 steps", "points"]
    assert [cell.partition(" %")[0] for cell in rows["late"][:3]] == ["–", "80.0", "–"]
    assert [cell.partition(" %")[0] for cell in rows["early"][:3]] == ["10.0", "–", "–"]
    assert (rows["late"][3], rows["early"][3]) == ("12.5 %", "0.0 %")


def test_overall_accuracy_is_pooled_where_it_was_not_logged(copy: Path) -> None:
    records = read_records(copy)
    for record in records:
        record.pop("eval/overall/accuracy", None), record.pop("eval/overall/n", None)
        record |= {"eval/social/n": 20, "eval/social/accuracy": 0.5} if record["step"] in (0, 60) else {}
    write_records(copy, records)
    write_report(copy)
    old, new = (round(60 * records[index]["eval/counting/accuracy"]) + 10 for index in (0, -1))
    value, note = cards(copy / "report.html")["Held-out accuracy"]
    assert value == f"{100 * old / 80:.1f} → {100 * new / 80:.1f} %"
    assert note.endswith("n = 80")


@pytest.mark.parametrize(("evaluations", "drawn"), [((0, 60), 0), ((0, 30, 60), len(SMALL) + 1)])
def test_accuracy_is_drawn_over_steps_from_three_evaluations_on(
    tmp_path: Path, evaluations: tuple[int, ...], drawn: int
) -> None:
    every_other = ("policy", "conductor", "reward", "time", "rollout", "advantage")
    folder = make_run(tmp_path / "run", evaluations=evaluations, families=SMALL, left_out=every_other)
    assert write_report(folder).read_text().count('aria-label="Held-out accuracy, ') == drawn


def test_hostile_text_stays_text(copy: Path) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["run"]["name"] = config["actor"]["model_name_or_path"] = HOSTILE.replace("/", "")
    (copy / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    hostile_keys = {"conductor/weight/<i>$x$</i>/format": 0.2, "reward/<i>own</i>/raw_mean": 0.1}
    write_records(copy, [record | hostile_keys | {"eval/<i>&amp;</i>/accuracy": 0.5} for record in read_records(copy)])
    edit_rows(copy / "rollouts/step_000060.parquet", prompt=HOSTILE, response=HOSTILE, reference=HOSTILE)
    path = write_report(copy)
    page = Page(path)
    assert page.open == []
    assert "img" not in {tag for tag, _ in page.tags}
    assert [attributes.get("id") for tag, attributes in page.tags if tag == "script"] == ["rollouts-data", None]
    assert not any(attribute.startswith("on") for _, attributes in page.tags for attribute in attributes)
    seen = HOSTILE.replace("\x1b", "␛")
    # Prompt and reference once for each of the two groups, and all of a group's eight responses.
    assert "".join(page.texts).count(seen) == len(SMALL) * (2 + GROUP_SIZE)
    for name in ("<i>$x$</i>", "<i>own</i>", "<i>&amp;</i>"):
        assert name in page.text
        assert name not in path.read_text(encoding="utf-8")


def test_each_data_set_shows_the_group_whose_rewards_differ_most(copy: Path) -> None:
    rows = pq.read_table(copy / "rollouts/step_000060.parquet").to_pylist()
    text = Page(write_report(copy)).text
    for family in SMALL:
        rewards: dict[int, list[float]] = {}
        for row in rows:
            if row["datasource"] == family:
                rewards.setdefault(row["group"], []).append(row["scalar_reward"])
        widest = max(rewards, key=lambda group: max(rewards[group]) - min(rewards[group]))
        start = text.index(f"{family} step 60, group {widest}, 8 responses")
        shown = [float(value) for value in re.findall(r"([\d.]+) reward", text[start:])][:GROUP_SIZE]
        ordered = sorted(rewards[widest], reverse=True)
        # Highest and lowest first, the folded ones after them.
        assert shown == pytest.approx([ordered[0], ordered[-1], *ordered[1:-1]], abs=6e-4)


def test_a_data_set_that_the_last_step_did_not_draw_comes_from_the_step_before(copy: Path) -> None:
    last = copy / "rollouts/step_000060.parquet"
    rows = pq.read_table(last).to_pylist()
    pq.write_table(pa.Table.from_pylist([row for row in rows if row["datasource"] != "social"]), last)
    text = Page(write_report(copy)).text
    assert "social step 59" in text
    assert "counting step 60" in text
    assert "counting step 59" not in text


def test_bars_are_as_long_as_normalised_value_and_weight(copy: Path) -> None:
    edit_rows(
        copy / "rollouts/step_000060.parquet", norm_format=0.25, weight_format=0.4, norm_length=1.7, raw_length=None
    )
    page = write_report(copy).read_text(encoding="utf-8")
    source = page.partition('<section id="time">')[2].partition("</section>")[2]
    rows = re.findall(r'<th scope="row">(format|length)\b.*?</tr>', source, flags=re.DOTALL)
    assert len(rows) == 2 * len(SMALL) * GROUP_SIZE
    bars = re.search(r'<th scope="row">format\b.*?--share: ([\d.]+)%.*?--share: ([\d.]+)%', source, flags=re.DOTALL)
    assert bars is not None and bars.groups() == ("25.0", "40.0")
    length = re.search(
        r'<th scope="row">length\b.*?<td class="num">(.*?)</td>.*?--share: ([\d.]+)%', source, flags=re.DOTALL
    )
    assert length is not None and length.groups() == ("–", "100.0")


def test_a_run_that_is_still_writing_reads(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=7)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "time/step_s": 0.')
    shutil.rmtree(folder / "rollouts")
    path = write_report(folder)
    assert cards(path)["GRPO steps"] == ("7 of 60", "so far")
    page = Page(path)
    assert "last line of metrics.jsonl is incomplete" in page.text
    assert "responses" not in page.attributes("id")


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "rew'])
def test_a_run_before_its_first_step_reads(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "config.yaml").write_text("run: {name: young, max_steps: 10}")
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    path = write_report(tmp_path)
    assert cards(path)["GRPO steps"] == ("0 of 10", "so far")
    assert "No step has finished yet" in Page(path).text


def test_a_run_evaluated_but_not_yet_trained_reads(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=0)
    shutil.rmtree(folder / "rollouts")
    value, note = cards(write_report(folder))["Held-out accuracy"]
    assert value == f"{100 * read_records(folder)[0]['eval/overall/accuracy']:.1f} %"
    assert note == "at step 0, n = 300"


def test_a_run_that_ended_before_its_last_step_is_finished_once_its_model_is_there(copy: Path) -> None:
    write_records(copy, read_records(copy)[:4])
    assert cards(write_report(copy))["GRPO steps"] == ("3 of 60", "so far")
    finish(copy)
    assert cards(write_report(copy))["GRPO steps"] == ("3 of 60", "finished")


def test_a_single_step_is_visible_in_every_chart(tmp_path: Path) -> None:
    source = write_report(make_run(tmp_path / "run", steps=1)).read_text(encoding="utf-8")
    for drawing in re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL):
        assert re.search(r"<circle|fill: var\(--t0\)", drawing), drawing


def test_steps_that_ran_again_after_a_resume_replace_the_earlier_ones(copy: Path) -> None:
    again = [record | {"reward/scalar_mean": 0.123} for record in read_records(copy) if 41 <= record["step"] <= 45]
    with (copy / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in again)
    shutil.copy(copy / "rollouts/step_000060.parquet", copy / "rollouts/step_000045.parquet")
    edit_rows(copy / "rollouts/step_000045.parquet", step=45)
    path = write_report(copy)
    assert cards(path)["GRPO steps"] == ("45 of 60", "so far")
    assert cards(path)["Final scalar reward"][0] == "0.123"
    text = Page(path).text
    assert "social step 45" in text
    assert "social step 60" not in text


def test_damaged_files_are_named_and_left_out(copy: Path) -> None:
    last = copy / "rollouts/step_000060.parquet"
    last.write_bytes(last.read_bytes()[:500])
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    lines[10] = lines[10][:40]
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (copy / "config.yaml").unlink()
    text = Page(write_report(copy)).text
    assert "rollouts/step_000060.parquet could not be read" in text
    assert "Line 11 of metrics.jsonl could not be read" in text
    assert "config.yaml is missing" in text
    assert "social step 59" in text


def test_a_rollout_file_without_a_column_is_named(copy: Path) -> None:
    last = copy / "rollouts/step_000060.parquet"
    pq.write_table(pq.read_table(last).drop_columns(["advantage"]), last)
    assert "rollouts/step_000060.parquet could not be read ('advantage')" in Page(write_report(copy)).text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is not a run directory"),
        ({"config.yaml": "model: other\n"}, "is not a run directory"),
        ({"config.yaml": "run: [\n", "metrics.jsonl": ""}, "is not valid YAML"),
    ],
)
def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ReportError, match=message) as caught:
        write_report(tmp_path)
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "report.html").exists()


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="is not a folder"):
        write_report(tmp_path / "nowhere")


def test_values_that_are_not_numbers_leave_a_gap(copy: Path) -> None:
    records = read_records(copy)
    for record in records[1:]:
        record["policy/kl"] = math.nan
        record["reward/scalar_mean"] = math.inf if record["step"] == 60 else 0.5
    write_records(copy, records)
    path = write_report(copy)
    assert cards(path)["Final scalar reward"][0] == "0.500"
    assert "KL to the reference" not in Page(path).text


@pytest.mark.parametrize(
    ("rate", "words"), [("missing_rate", "scorer gave no value"), ("fault_rate", "response at fault")]
)
def test_only_rates_above_zero_are_drawn(copy: Path, rate: str, words: str) -> None:
    records = read_records(copy)
    for record in records[1:]:
        record["reward/perplexity/fault_rate"] = record["advantage/frac_zero_std"] = 0.0
    write_records(copy, records)
    assert "No value was missing" in Page(write_report(copy)).text
    records[30][f"reward/length/{rate}"] = 0.1
    write_records(copy, records)
    text = Page(write_report(copy)).text
    assert f"length: {words}" in text
    assert f"format: {words}" not in text


def test_weights_that_never_change_are_said_not_drawn(copy: Path) -> None:
    records = read_records(copy)
    for record in records[1:]:
        record |= {key: 0.2 for key in record if key.startswith("conductor/weight/")}
    write_records(copy, records)
    text = Page(write_report(copy)).text
    assert "The same at every step: format 0.200, perplexity 0.200, entropy 0.200" in text
    assert "the paper's Figure 3" not in text


@pytest.mark.parametrize(("kind", "steps", "said"), [("conductor", 1, 0), ("conductor", 2, 1), ("equal", 1, 1)])
def test_weights_that_learn_are_not_the_same_at_every_step_after_one(
    copy: Path, kind: str, steps: int, said: int
) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(config | {"conductor": {"kind": kind}}))
    records = read_records(copy)[: steps + 1]
    for record in records[1:]:
        record |= {key: 0.2 for key in record if key.startswith("conductor/weight/")}
    write_records(copy, records)
    source = write_report(copy).read_text(encoding="utf-8")
    assert source.count("The same at every step") == said
    assert source.count("Figure 3") == 1 - said


def test_a_slow_first_step_does_not_flatten_the_others(run_dir: Path) -> None:
    first = read_records(run_dir)[1]["time/step_s"]
    assert f"Seconds a step: cut off: step 1, {first:.2f} s" in Page(run_dir / "report.html").text


def table_rows(source: str, caption: str) -> dict[str, list[str]]:
    """The texts of the table with this beginning of a caption, by the first cell of each row."""
    table = source.replace("\u202f", " ").partition(f"<caption>{caption}")[2].partition("</table>")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return {texts[0]: texts[1:] for texts in ([re.sub("<[^>]*>", "", cell).strip() for cell in row] for row in cells)}


def test_the_time_of_a_token_is_the_median_over_steps_of_each_phase(run_dir: Path) -> None:
    trained = [record for record in read_records(run_dir) if record["step"] > 0]
    rows = table_rows((run_dir / "report.html").read_text(encoding="utf-8"), "Median over steps")
    for phase in ("generation", "experience", "update", "sync", "step"):
        each = [1000 * record[f"time/{phase}_s"] / record["rollout/tokens"] for record in trained]
        number, unit = rows[phase][1].split()
        assert (float(number), unit) == (pytest.approx(statistics.median(each), rel=6e-3), "ms")


def test_steps_without_tokens_have_no_time_of_a_token(copy: Path) -> None:
    write_records(copy, [record | {"rollout/tokens": 0} for record in read_records(copy)])
    path = write_report(copy)
    rows = table_rows(path.read_text(encoding="utf-8"), "Median over steps")
    assert rows["generation"][1] == "–"
    assert 'aria-label="Milliseconds a response token' not in path.read_text(encoding="utf-8")


def test_syncs_of_the_reference_are_marked_in_the_kl(copy: Path) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    marked = {}
    for every in (7, -1, 1):
        (copy / "config.yaml").write_text(yaml.safe_dump(config | {"objective": {"ref_sync_steps": every}}))
        path = write_report(copy)
        (drawing,) = re.findall(r'<svg[^>]*aria-label="KL to the reference.*?</svg>', path.read_text(), flags=re.DOTALL)
        # Vertical lines: both ends at the same x.
        ends = re.findall(r'd="M ([\d.]+) [\d.]+ L ([\d.]+) [\d.]+"', drawing)
        marked[every] = [float(start) for start, end in ends if start == end]
        assert ("after every 7 steps, 8 times" in Page(path).text) == (every == 7)
    # Steps 1 to 60 lie between 44 and 330.
    assert marked[7] == pytest.approx([44 + (step - 1) / 59 * 286 for step in range(7, 57, 7)], abs=0.06)
    assert marked[-1] == []
    assert len(marked[1]) == 60


def test_the_advantages_are_drawn_from_the_rollouts(copy: Path) -> None:
    rows = [
        row | {"advantage": index / 127}
        for index, row in enumerate(pq.read_table(copy / "rollouts/step_000060.parquet").to_pylist())
    ]
    pq.write_table(pa.Table.from_pylist(rows), copy / "rollouts/step_000060.parquet")
    labels = re.findall(r'aria-label="([^"]*)"', write_report(copy).read_text(encoding="utf-8"))
    (spread,) = [label for label in labels if label.startswith("Advantages")]
    # 128 values evenly from 0 to 1.
    assert spread.endswith("At the last step: +0.050 to +0.95")


def test_scores_have_a_table_where_they_say_more_than_right_and_wrong(copy: Path) -> None:
    def scored(values: dict[str, float]) -> str:
        records = read_records(copy)
        records[0] |= {f"eval/{name}/score": value for name, value in values.items()}
        records[-1] |= {f"eval/{name}/score": value + 0.25 for name, value in values.items()}
        write_records(copy, records)
        return write_report(copy).read_text(encoding="utf-8")

    source = scored({"essays": 0.5, "overall": 0.5, "letters": 0.125})
    rows = table_rows(source, "Mean score of the held-out responses")
    assert list(rows) == ["data set", "essays", "letters", "overall"]
    assert rows["letters"][:2] == ["0.125", "0.375"]


def test_a_score_that_was_not_logged_has_a_dash_under_its_header(copy: Path) -> None:
    records = read_records(copy)
    records[30] |= {"eval/a/score": 0.2, "eval/b/score": 0.3}
    records[0] |= {"eval/a/score": 0.125, "eval/a/n": 10}
    records[-1] |= {"eval/b/score": 0.875, "eval/b/n": 12}
    write_records(copy, records)
    rows = table_rows(write_report(copy).read_text(encoding="utf-8"), "Mean score of the held-out responses")
    assert rows["data set"] == ["step 0", "step 60", "responses"]
    assert (rows["a"], rows["b"]) == (["0.125", "–", "–"], ["–", "0.875", "12"])


def test_scores_that_are_the_accuracy_have_none(copy: Path) -> None:
    records = read_records(copy)
    write_records(
        copy,
        [record | {key.replace("accuracy", "score"): value for key, value in record.items() if "accuracy" in key}
         for record in records],
    )  # fmt: skip
    assert "Mean score" not in write_report(copy).read_text(encoding="utf-8")


def test_responses_without_a_verdict_are_said_where_there_are_any(copy: Path) -> None:
    assert "no verdict</th>" not in write_report(copy).read_text(encoding="utf-8")
    records = read_records(copy)
    records[-1] |= {"eval/social/missing_rate": 0.05, "eval/counting/missing_rate": 0.0}
    write_records(copy, records)
    rows = table_rows(write_report(copy).read_text(encoding="utf-8"), "Share of held-out responses")
    place = rows["data set"].index("no verdict")
    assert [rows[name][place] for name in ("social", "counting")] == ["5.0 %", "0.0 %"]


def test_the_caption_says_who_judged(copy: Path) -> None:
    assert "right, by the rule," in Page(write_report(copy)).text
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(config | {"eval": {"verdict": "judge"}}))
    assert "right, by the judge," in Page(write_report(copy)).text


def test_the_same_files_give_the_same_page_wherever_it_is_written(run_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "pages" / "page.html"
    assert write_report(run_dir, target) == target
    assert target.read_bytes() == (run_dir / "report.html").read_bytes()


def test_a_failed_write_leaves_the_earlier_page(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(copy)
    before = sorted(copy.iterdir()), (copy / "report.html").read_bytes()
    write_records(copy, read_records(copy)[:20])

    def full_disk(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(ReportError, match="cannot be written: No space left on device"):
        write_report(copy)
    assert (sorted(copy.iterdir()), (copy / "report.html").read_bytes()) == before


def test_the_report_imports_nothing_heavy() -> None:
    heavy = {"torch", "ray", "vllm", "deepspeed", "openrlhf", "transformers"}
    code = "import sys, openrlhf_maestro.report; print(*(name for name in sys.modules if '.' not in name))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "matplotlib" in loaded
    assert not heavy & set(loaded)
