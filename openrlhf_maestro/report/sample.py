"""Which responses the browsable tables hold: a bounded choice from the whole run, in whole groups."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from openrlhf_maestro.report.rollouts import Evaluated, Rollout, evenly
from openrlhf_maestro.report.run import Run

# What a page can hold and a browser sort at once: rows, characters of all their texts, rollout files read for them.
MAX_ROWS = 2000
MAX_CHARACTERS = 1_500_000
MAX_EARLIER_FILES = 40
# Of one text; the rest is counted.
MAX_TEXT = 20_000
MAX_EVALUATED = 1000


@dataclass(frozen=True)
class Sample:
    """Responses of the run, newest step first and in file order within; `total` is how many there are in all."""

    rows: list[Rollout] = field(default_factory=list)
    total: int = 0

    @property
    def steps(self) -> list[int]:
        """The steps they come from, ascending."""
        return sorted({row.step for row in self.rows})


@dataclass(frozen=True)
class Pair:
    """A held-out response of the last evaluation, and that of the first to the same row where there is one."""

    last: Evaluated
    first: Evaluated | None


@dataclass(frozen=True)
class EvaluationSample:
    """Held-out responses of the last evaluation; `total` is how many it has in all."""

    pairs: list[Pair] = field(default_factory=list)
    total: int = 0


def sample_rollouts(run: Run) -> Sample:
    """Every response of the run, or about MAX_ROWS of them: half from the newest steps, half evenly from the others.

    Where not even one step fits, and in the earlier steps, whole groups are chosen at even distances. Long texts lower
    the number of groups, so that all texts together stay near MAX_CHARACTERS.
    """
    counts = run.rollout_counts()
    total = sum(counts.values())
    rows = [row for step, most in _plan(counts) for row in run.rollouts(step, most)]
    groups = [list(members) for _, members in groupby(rows, key=lambda row: (row.step, row.group))]
    # What is embedded: the prompt and the reference once a group, and no text beyond MAX_TEXT.
    size = sum(_size(members[0].prompt, members[0].reference, *(row.response for row in members)) for members in groups)
    if size > MAX_CHARACTERS:
        groups = evenly(groups, max(1, len(groups) * MAX_CHARACTERS // size))
    return Sample([row for members in groups for row in members], total)


def _plan(counts: dict[int, int]) -> list[tuple[int, int]]:
    """(step, rows to read), newest first."""
    steps = sorted(counts, reverse=True)
    if sum(counts.values()) <= MAX_ROWS:
        return [(step, counts[step]) for step in steps]
    plan: list[tuple[int, int]] = []
    left = MAX_ROWS // 2
    for step in steps:
        if plan and counts[step] > left:
            break
        plan.append((step, min(counts[step], left)))
        left -= plan[-1][1]
    earlier = evenly(steps[len(plan) :], MAX_EARLIER_FILES)
    return plan + [(step, (MAX_ROWS // 2 + left) // len(earlier)) for step in earlier]


def sample_evaluation(run: Run) -> EvaluationSample:
    """At most MAX_EVALUATED responses of the last evaluation, at even distances, each beside that of the first one."""
    steps = sorted(run.evaluation_files)
    if not steps:
        return EvaluationSample()
    last = _numbered(run.evaluated(steps[-1]))
    first = dict(_numbered(run.evaluated(steps[0]))) if len(steps) > 1 else {}
    chosen = evenly(last, MAX_EVALUATED)
    pairs = [Pair(row, first.get(key)) for key, row in chosen]
    size = sum(_size(pair.last.prompt, pair.last.reference, pair.last.response) for pair in pairs)
    size += sum(_size(pair.first.response) for pair in pairs if pair.first)
    if size > MAX_CHARACTERS:
        pairs = evenly(pairs, max(1, len(pairs) * MAX_CHARACTERS // size))
    return EvaluationSample(pairs, len(last))


def _numbered(rows: Sequence[Evaluated]) -> list[tuple[tuple[str, int], Evaluated]]:
    """Each row with its id and the number of that id's earlier rows: a prompt may have several samples."""
    seen: Counter[str] = Counter()
    numbered = []
    for row in rows:
        numbered.append(((row.id, seen[row.id]), row))
        seen[row.id] += 1
    return numbered


def _size(*texts: str | None) -> int:
    return sum(min(len(text or ""), MAX_TEXT) for text in texts)


def advantages_by_step(sample: Sample) -> dict[int, list[float]]:
    """The finite advantages of the sampled responses, steps ascending."""
    found: defaultdict[int, list[float]] = defaultdict(list)
    for row in sample.rows:
        if row.advantage == row.advantage:
            found[row.step].append(row.advantage)
    return dict(sorted(found.items()))
