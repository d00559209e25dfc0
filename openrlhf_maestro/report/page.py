"""`report.html`: what the template shows, and how the file is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from openrlhf_maestro.report import figures, formats
from openrlhf_maestro.report.responses import sample_groups, segments
from openrlhf_maestro.report.run import Run, load_run
from openrlhf_maestro.report.summary import (
    accuracy_rows,
    cards,
    component_times,
    constant_weights,
    timing,
    weighting,
)


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Write the page of a run directory and return its path, by default `run_dir/report.html`.

    Reads config.yaml, metrics.jsonl and rollouts/ only; a run that is still going or was stopped is shown as far as it
    got. The page is one file without scripts or links to other files, and replaces an earlier one in one move.

    Raises ReportError where `run_dir` is not a run directory, OSError where the page cannot be written.
    """
    page = render(load_run(run_dir))
    target = output or run_dir / "report.html"
    _write_atomically(target, page)
    return target


def render(run: Run) -> str:
    """The page as HTML. Every text of the run is escaped: prompts and responses are untrusted."""
    environment = Environment(
        loader=PackageLoader("openrlhf_maestro.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": formats.number,
        "signed": formats.signed,
        "percent": formats.percent,
        "points": formats.points,
        "seconds": formats.seconds,
        "segments": segments,
        "svg": Markup,  # charts.py escapes what it puts into a drawing
    }
    return environment.get_template("report.html.j2").render(**_content(run))


def _content(run: Run) -> dict[str, Any]:
    """Everything the template names."""
    rows, times, groups = accuracy_rows(run), timing(run), sample_groups(run)
    components = run.components()
    shown = dict.fromkeys([*components, *(name for group in groups for name in group.responses[0].raw)])
    fixed = constant_weights(run)
    return {
        "name": run.option("run.name") or run.path.resolve().name,
        "run": run,
        "components": components,
        "colours": figures.component_colours(list(shown)),
        "weighting": weighting(run),
        "cards": cards(run),
        "accuracy": rows,
        "accuracy_panels": figures.accuracy_panels(rows),
        "fixed_weights": fixed,
        "weight_panels": [] if fixed else figures.weight_panels(run),
        "conductor_panels": figures.conductor_panels(run),
        "reward_panels": figures.reward_panels(run),
        "component_panels": figures.component_panels(run),
        "fault_panels": figures.fault_panels(run),
        "policy_panels": figures.policy_panels(run),
        "timing": times,
        "component_times": component_times(run),
        "timing_panel": figures.timing_panel(times),
        "phase_colours": figures.PHASE_COLOURS,
        "smoothing": figures.smoothing_note(run),
        "groups": groups,
        "settings": dict(_flat(run.config)),
        # Last: reading the rollouts may add to it.
        "problems": run.problems,
    }


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested options as (dotted name, value)."""
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _write_atomically(target: Path, text: str) -> None:
    """A reader, or a full disk, never meets half a page."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(0o644)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
