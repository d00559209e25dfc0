"""What a person sees while training: one bar, one line a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from openrlhf_maestro.evaluation.tables import Summary, SummaryRow, score_text

# Names of data sets, paths and replies of judges may hold square brackets: they are no markup here.
CONSOLE = Console(highlight=False, markup=False)


class TrainingConsole:
    """The bar with the step's phase, and above it the lines of the finished steps."""

    def __init__(self, total_steps: int, done: int, console: Console = CONSOLE) -> None:
        self.total_steps = total_steps
        self.console = console
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[phase]}"),
            console=console,
            transient=True,
        )
        self.task = self.progress.add_task("train", total=total_steps, completed=done, phase="")

    def __enter__(self) -> TrainingConsole:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def phase(self, name: str) -> None:
        """Say beside the bar what is going on."""
        self.progress.update(self.task, phase=name)

    def step(self, step: int, metrics: Mapping[str, Any], component_names: Sequence[str]) -> None:
        """The line of a finished step."""
        self.progress.update(self.task, completed=step)
        # A terminal wraps a long line itself; a log file must not have it broken.
        self.console.print(step_line(step, self.total_steps, metrics, component_names), soft_wrap=True)


def step_line(step: int, total: int, metrics: Mapping[str, Any], component_names: Sequence[str]) -> str:
    """Reward, weights, length, KL and seconds of a step."""
    weights = " ".join(f"{name[:4]} {metrics[f'conductor/weight/{name}']:.2f}" for name in component_names)
    return (
        f"step {step:>{len(str(total))}}/{total}  reward {metrics['reward/scalar_mean']:.3f}  {weights}  "
        f"length {metrics['rollout/response_length_mean']:.1f}  KL {metrics['policy/kl']:.4f}  "
        f"{metrics['time/step_s']:.2f} s"
    )


def held_out_table(before: Summary, after: Summary) -> Table:
    """Accuracy, or where there is none the mean score, by data set, with intervals."""
    what = "accuracy" if before.overall.share is not None else "score"
    table = Table(title=f"held-out {what} ({100 * before.confidence:.0f} % interval)", title_justify="left")
    for name in ("data source", "before", "after"):
        table.add_column(name, justify="left" if name == "data source" else "right")
    for first, last in zip((*before.datasources, before.overall), (*after.datasources, after.overall), strict=True):
        style = "bold" if first is before.overall else None
        table.add_row(first.name, _cell(first), _cell(last), style=style)
    return table


def _cell(row: SummaryRow) -> str:
    share = row.share
    if share is None or share.low is None or share.high is None:
        return score_text(row.score)
    return f"{row.right}/{row.n} = {share.value:.1%} ({100 * share.low:.0f}-{100 * share.high:.0f})"
