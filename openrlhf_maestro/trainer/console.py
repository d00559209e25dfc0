"""What a person sees while training: one bar, one line a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

CONSOLE = Console(highlight=False)


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
        self.console.print(step_line(step, self.total_steps, metrics, component_names))

    def note(self, text: str) -> None:
        """A line among those of the steps."""
        self.console.print(text)


def step_line(step: int, total: int, metrics: Mapping[str, Any], component_names: Sequence[str]) -> str:
    """Reward, weights, length, KL and seconds of a step."""
    weights = " ".join(f"{name[:4]} {metrics[f'conductor/weight/{name}']:.2f}" for name in component_names)
    width = len(str(total))
    return (
        f"step {step:>{width}}/{total}  reward {metrics['reward/scalar_mean']:.3f}  weights {weights}  "
        f"length {metrics['rollout/response_length_mean']:.1f}  KL {metrics['policy/kl']:.4f}  "
        f"{metrics['time/step_s']:.2f} s"
    )


def accuracy_table(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]] | None) -> Table:
    """Held-out accuracy by data source; values are (right, asked)."""
    table = Table(title="held-out accuracy", title_justify="left")
    table.add_column("data source")
    table.add_column("before", justify="right")
    if after is not None:
        table.add_column("after", justify="right")
    for source, (right, asked) in before.items():
        cells = [source, _share(right, asked)]
        if after is not None:
            cells.append(_share(*after[source]))
        table.add_row(*cells, style="bold" if source == "overall" else None)
    return table


def _share(right: int, asked: int) -> str:
    return f"{right}/{asked} ({right / asked:.1%})"
