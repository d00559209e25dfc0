"""`maestro lab`: orchestrators and credit rules in a simulated world with known quality."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from openrlhf_maestro.config.lab import LabConfig
from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.errors import ConfigError

if TYPE_CHECKING:
    from openrlhf_maestro.lab import Findings


def run(argv: Sequence[str]) -> int:
    """Runs the lab, prints its tables and writes its files. Raises ConfigError where these cannot be written."""
    config = load_config(LabConfig, argv)
    folder = Path(config.lab.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"lab.output_dir: {folder} cannot be made: {error.strerror}. Name another folder.") from error
    from openrlhf_maestro.lab import run_count, run_lab, write_files, write_plot

    console = Console(highlight=False)
    started = time.perf_counter()
    columns = (TextColumn("runs"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("lab", total=run_count(config))
        findings = run_lab(config, lambda: progress.advance(task))
    seconds = time.perf_counter() - started
    write_files(findings, folder, seconds)
    write_plot(findings, folder / "lab.png")
    console.print(_correlations(findings))
    console.print(_winners(findings))
    if findings.drift:
        console.print(_drift(findings))
    console.print(_verdict(findings), soft_wrap=True)
    console.print(f"{seconds:.0f} s; lab.json, results.csv, weights.csv and lab.png are in {folder}", soft_wrap=True)
    return 0


def _correlations(findings: Findings) -> Table:
    from openrlhf_maestro.lab import rows

    seeds = findings.config.lab.seeds
    table = Table(title=f"reward against true quality: correlation, mean and sd of {seeds} seeds", title_justify="left")
    table.add_column("arm")
    for context in findings.config.world.contexts:
        table.add_column(context, justify="right")
    found = list(rows(findings))
    for arm in findings.arms:
        table.add_row(arm.name, *(f"{r.correlation:.2f} ± {r.correlation_sd:.2f}" for r in found if r.arm == arm.name))
    return table


def _winners(findings: Findings) -> Table:
    from openrlhf_maestro.lab import COLLAPSED, rows

    table = Table(title="where the weights went", title_justify="left")
    for name in ("arm", "context", "largest weight on (seeds)"):
        table.add_column(name)
    table.add_column("weight", justify="right")
    table.add_column(f"above {COLLAPSED:g} from step", justify="right")
    learned = {arm.name for arm in findings.arms if arm.learns}
    for row in rows(findings):
        if row.arm in learned:
            table.add_row(row.arm, row.context, _counts(row.winners), f"{row.largest:.2f}", _step(row.collapsed_at))
    return table


def _counts(winners: Sequence[str]) -> str:
    """Each winner with the number of its seeds where there are several."""
    counted = Counter(winners).most_common()
    return counted[0][0] if len(counted) == 1 else ", ".join(f"{name} {count}" for name, count in counted)


def _drift(findings: Findings) -> Table:
    from openrlhf_maestro.lab import drift_rows

    found = drift_rows(findings)
    lr = findings.config.drift.lr
    table = Table(title=f"the paper's credit at lr {lr:g}: the winner's weight", title_justify="left")
    table.add_column("H", justify="right")
    table.add_column("winner")
    for step in found[0].weights:
        table.add_column(f"step {step}", justify="right")
    table.add_column("above 0.5 from step", justify="right")
    for row in found:
        weights = [f"{weight:.2f}" for weight in row.weights.values()]
        table.add_row(str(row.hidden_size), row.component, *weights, _step(row.above_half_at))
    return table


def _step(step: float | None) -> str:
    return "-" if step is None else f"{step:g}"


def _verdict(findings: Findings) -> str:
    gains = ", ".join(f"{context} {gain:+.2f}" for context, gain in findings.gain().items())
    return f"anchor credit less equal weights, smallest of the seeds: {gains}"
