"""`report.html`: what the template shows, and how the file is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from openrlhf_maestro.config.writing import write_atomically
from openrlhf_maestro.report import compare_figures, figures, formats
from openrlhf_maestro.report.browser import evaluation_browser, rollout_browser
from openrlhf_maestro.report.compare import (
    LAST_STEPS,
    Contender,
    contenders,
    datasources,
    differing_options,
    headline,
    same_datasources,
)
from openrlhf_maestro.report.embed import embedded_json, script_hash
from openrlhf_maestro.report.evaluations import read_comparison_tables, read_summary
from openrlhf_maestro.report.held_out import accuracy_rows, ends, missing_rates, score_rows
from openrlhf_maestro.report.responses import sample_groups, segments
from openrlhf_maestro.report.run import ReportError, Run, flat, load_run
from openrlhf_maestro.report.sample import advantages_by_step, sample_evaluation, sample_rollouts
from openrlhf_maestro.report.summary import (
    cards,
    component_times,
    constant_weights,
    per_token,
    run_name,
    timing,
    weighting,
)

SCRIPTS = ("charts.js", "browser.js")

# `eval.verdict` in words.
VERDICTS = {"judge": "the judge", "reference": "comparison with the reference"}


@dataclass(frozen=True)
class Extras:
    """What a page can show beside the run directories: folders of `maestro evaluate`, and how often it loads itself."""

    evaluations: Sequence[Path] = ()
    comparison: Path | None = None
    refresh_s: int | None = None

    def content(self) -> dict[str, Any]:
        """What the templates name of it. Raises DataError for a folder that is no finished evaluation or comparison."""
        return {
            "evaluations": [read_summary(folder) for folder in self.evaluations],
            "comparison": read_comparison_tables(self.comparison) if self.comparison else None,
            "refresh_s": self.refresh_s,
        }


def write_report(run_dir: Path, output: Path | None = None, extras: Extras | None = None) -> Path:
    """Write the page of a run directory and return its path, by default `run_dir/report.html`.

    Reads files only; a run that is still going or was stopped is shown as far as it got. The page is one file without
    links to others, and replaces an earlier one in one move.

    Raises ReportError where `run_dir` is not a run directory or the page cannot be written, DataError for evaluations
    that cannot be read.
    """
    content = (extras or Extras()).content()
    target = output or run_dir / "report.html"
    _write(target, render("report.html.j2", run_content(load_run(run_dir)) | content))
    return target


def write_comparison(run_dirs: Sequence[Path], output: Path | None = None, extras: Extras | None = None) -> Path:
    """Write the page of several runs side by side and return its path, by default `report.html` in this folder.

    Raises what `write_report` raises, and UserError for a run that is given twice or for too many of them.
    """
    content = (extras or Extras()).content()
    target = output or Path("report.html")
    _write(target, render("compare.html.j2", compare_content(contenders(run_dirs)) | content))
    return target


def render(template: str, content: dict[str, Any]) -> str:
    """A page as HTML. Every text of the run is escaped: prompts and responses are untrusted."""
    loader = PackageLoader("openrlhf_maestro.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["zip"] = zip
    environment.filters |= {
        "number": formats.number,
        "signed": formats.signed,
        "percent": formats.percent,
        "points": formats.points,
        "seconds": formats.seconds,
        "milliseconds": formats.milliseconds,
        "segments": segments,
        "json": embedded_json,
        "svg": Markup,  # charts.py escapes what it puts into a drawing
    }
    script = "".join(loader.get_source(environment, name)[0] for name in SCRIPTS)
    code = {"script": Markup(script), "script_hash": script_hash(script)}  # our own files, the same in every page
    return environment.get_template(template).render(**content, **code)


def run_content(run: Run) -> dict[str, Any]:
    """Everything that report.html.j2 names of the run."""
    rows, times, groups = accuracy_rows(run), timing(run), sample_groups(run)
    a_token, scores = per_token(run, times), score_rows(run)
    accuracy_ends = ends(rows)
    sample = sample_rollouts(run)
    components = run.components()
    shown = list(dict.fromkeys([*components, *(name for row in sample.rows for name in row.raw)]))
    colours = figures.component_colours(shown)
    fixed = constant_weights(run)
    rollouts, evaluation = rollout_browser(sample, shown, colours), evaluation_browser(sample_evaluation(run))
    return {
        "name": run_name(run),
        "run": run,
        "components": components,
        "colours": colours,
        "weighting": weighting(run),
        "cards": cards(run),
        "accuracy": rows,
        "accuracy_panels": figures.accuracy_panels(rows),
        "verdict": VERDICTS.get(run.option("eval.verdict"), "the rule"),
        "accuracy_ends": accuracy_ends,
        "missing": missing_rates(run, accuracy_ends[1]) if accuracy_ends else {},
        "scores": scores,
        "score_ends": ends(scores),
        "evaluation": evaluation,
        "fixed_weights": fixed,
        "weight_panels": [] if fixed else figures.weight_panels(run),
        "conductor_panels": figures.conductor_panels(run),
        "reward_panels": figures.reward_panels(run),
        "component_panels": figures.component_panels(run),
        "advantage_panels": figures.advantage_panels(run, advantages_by_step(sample)),
        "fault_panels": figures.fault_panels(run),
        "policy_panels": figures.policy_panels(run),
        "syncs": figures.sync_steps(run),
        "max_sync_marks": figures.MAX_SYNC_MARKS,
        "timing": times,
        "token_timing": a_token,
        "component_times": component_times(run),
        "timing_panel": figures.timing_panel(times),
        "token_timing_panel": figures.token_timing_panel(a_token),
        "phase_colours": figures.PHASE_COLOURS,
        "smoothing": figures.smoothing_note(run),
        "rollouts": rollouts,
        "groups": groups,
        "settings": dict(flat(run.config)),
        # Last: reading the rollouts may add to it.
        "problems": run.problems,
    }


def compare_content(runs: list[Contender]) -> dict[str, Any]:
    """Everything that compare.html.j2 names of the runs."""
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.run.problems]
    options = differing_options(runs)
    return {
        "runs": runs,
        "names": [run.name for run in runs],
        "run_colours": {run.name: run.colour for run in runs},
        "datasources": datasources(runs),
        "headline": headline(runs),
        "same_datasources": same_datasources(runs),
        "accuracy_panels": compare_figures.accuracy_panels(runs),
        "reward_panels": compare_figures.reward_panels(runs),
        "weight_panels": compare_figures.weight_panels(runs),
        "policy_panels": compare_figures.policy_panels(runs),
        "smoothing": any(figures.smoothing_note(run.run) for run in runs),
        "last_steps": LAST_STEPS,
        "options": options,
        "problems": problems,
    }


def _write(target: Path, page: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, page)
    except OSError as error:
        raise ReportError(
            f"{target} cannot be written: {error.strerror}. Name another file with `maestro report RUN --output FILE`."
        ) from error
