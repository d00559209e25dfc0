"""The prompts of a run: rows checked and turned into prompts, and their order over the steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import PurePath
from typing import Any, overload

import numpy as np

from openrlhf_maestro.config.sections import DataSection, listed
from openrlhf_maestro.data.readers import SPLIT_COLUMN, Row, Rows, read_source, source_name
from openrlhf_maestro.data.templates import fill_template
from openrlhf_maestro.errors import DataError

__all__ = ["DataError", "Prompt", "PromptLoader", "PromptSet", "fit_prompts", "load_prompts"]

DEFAULT_DATASOURCE = "default"
ID_COLUMN = "id"
CLUSTER_KEY = "cluster"
# What all data sets together are called in metrics and tables.
OVERALL = "overall"

EMPTY_PROMPT = "empty prompt"
EMPTY_REFERENCE = "empty reference"
TOO_LONG = "too long"

Message = Mapping[str, str]
Render = Callable[[Any], list[int]]


@dataclass(frozen=True)
class Prompt:
    """One row: what the policy is asked, and what is known about the answer.

    `text` is the prompt as the policy is shown it before a chat template; `messages` the same as chat messages;
    `question` the row's own prompt, without data.input_template;
    `token_ids` the rendered prompt, empty before `fit_prompts`. `source` and `row` (from 1) say where it stands and are
    unique together; `id` is the row's own, else file name and row, the same wherever the file lies. `metadata` holds
    the columns that have no other place here. `source_index` counts the sources of a mixture, from 0.
    """

    id: str
    text: str
    messages: tuple[Message, ...]
    reference: str | None
    datasource: str
    source: str
    row: int
    token_ids: list[int] = field(default_factory=list)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source_index: int = 0
    question: str = ""

    def cluster(self, key: str = CLUSTER_KEY) -> str | None:
        """What the row belongs together with, by the column `key` or that key in its `meta`; None: it stands alone."""
        meta = self.metadata.get("meta")
        value = self.metadata.get(key, meta.get(key) if isinstance(meta, Mapping) else None)
        return None if value is None else str(value)

    @property
    def key(self) -> str:
        """Tells it from every other prompt of the run, wherever the files lie."""
        return f"{self.id}#{self.row}" + (f"@{self.source_index}" if self.source_index else "")


@dataclass(frozen=True)
class PromptSet(Sequence[Prompt]):
    """Prompts in the order of their rows. `dropped` counts the rows left out, by reason."""

    prompts: tuple[Prompt, ...]
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prompt, ...]: ...
    def __getitem__(self, index: int | slice) -> Prompt | tuple[Prompt, ...]:
        return self.prompts[index]


def load_prompts(
    data: DataSection,
    *,
    dataset: str,
    split: str,
    needs_reference: bool,
    needing: str,
    max_samples: int,
    render: Render | None,
    max_prompt_tokens: int,
) -> PromptSet:
    """The prompts of `split` in `dataset` (several sources by commas, in this order), from at most `max_samples` rows.

    A row that names no data source is of `default`, or where there are several sources of the one `source_name` gives.
    A row with an empty prompt, or an empty reference where `needs_reference`, is dropped and counted. `needing` names
    who needs it in errors ("the `perplexity` component"). With `render` the prompts are tokenized and fitted as by
    `fit_prompts`; with None (before a tokenizer is loaded) columns, splits and rows are checked all the same.

    Raises DataError for a source that cannot be read, an absent split or column, a value that is not a text, and when
    more than the share data.max_dropped_rate of the rows would be dropped; ConfigError for a data.input_template that
    cannot be read.
    """
    files = list(_files(dataset, split))
    for file in files:
        _check_columns(file.rows, data, needs_reference, needing)
    selected = [(file, number, row) for file in files for number, row in file.rows.numbered][:max_samples]
    if not selected:
        raise DataError(f"{dataset} has no rows in split `{split}`.")
    drops = _Drops(data.max_dropped_rate)
    prompts = []
    for file, number, row in selected:
        prompt = _prompt(row, data, file, number)
        if not any(message["content"].strip() for message in prompt.messages):
            drops.add(EMPTY_PROMPT, prompt)
        elif needs_reference and prompt.reference is None:
            drops.add(EMPTY_REFERENCE, prompt)
        else:
            prompts.append(prompt)
    drops.check(len(selected))
    found = PromptSet(tuple(prompts), drops.counts)
    return found if render is None else fit_prompts(found, data, render=render, max_prompt_tokens=max_prompt_tokens)


def fit_prompts(
    prompts: PromptSet,
    data: DataSection,
    *,
    render: Render,
    max_prompt_tokens: int,
    budget: str = "data.max_len less rollout.max_new_tokens",
) -> PromptSet:
    """The prompts with their token ids, each of at most `max_prompt_tokens`.

    `render` gets a prompt's messages where data.apply_chat_template, else its text, and returns token ids. A longer
    prompt is dropped and counted; with data.truncate_prompts its start is cut off instead. `budget` says in errors
    where that number comes from. Raises DataError when, with the rows dropped before, more than the share
    data.max_dropped_rate is dropped.
    """
    drops = _Drops(data.max_dropped_rate, Counter(prompts.dropped))
    fitting = []
    for prompt in prompts:
        try:
            token_ids = render(list(prompt.messages) if data.apply_chat_template else prompt.text)
        except DataError as error:
            raise DataError(f"{prompt.source}, row {prompt.row}: {error}") from error
        if len(token_ids) > max_prompt_tokens and not data.truncate_prompts:
            drops.add(TOO_LONG, prompt)
        else:
            fitting.append(replace(prompt, token_ids=token_ids[-max_prompt_tokens:]))
    drops.check(
        len(prompts) + sum(prompts.dropped.values()),
        f" A prompt may have {max_prompt_tokens} tokens: {budget}.",
    )
    return PromptSet(tuple(fitting), drops.counts)


class PromptLoader:
    """Batches of prompts in an order that follows from `seed` alone.

    Each of the `num_episodes` passes has its own permutation. The ragged tail of a pass, fewer than `batch_size`
    prompts, is left out: batches are whole and never mix passes, and other prompts are left out in the next pass.
    There is no state: a resumed run continues at step n with the batch that an unbroken one would have had.

    With `probs`, the share of each source, a pass is not every prompt but the most that have these shares with none of
    them twice: of source i with n_i prompts, floor(p_i min_j (n_j / p_j)), drawn anew for each pass.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        batch_size: int,
        seed: int,
        num_episodes: int,
        probs: Sequence[Fraction] | None = None,
    ) -> None:
        """`probs` sum to 1, and the prompts of a source follow each other.

        Raises DataError where a pass does not fill one batch, or has no prompt of some source.
        """
        self._sizes, self._quotas = _shares(prompts, probs)
        if sum(self._quotas) < batch_size:
            raise DataError(
                f"{sum(self._quotas)} prompts do not fill one step of rollout.batch_size {batch_size}: "
                "use more prompts or a smaller batch."
            )
        self._prompts = prompts
        self._batch_size = batch_size
        self._seed = seed
        self._num_episodes = num_episodes

    @property
    def steps_per_episode(self) -> int:
        return sum(self._quotas) // self._batch_size

    def __len__(self) -> int:
        """Steps of all passes."""
        return self.steps_per_episode * self._num_episodes

    def batch(self, step: int) -> list[Prompt]:
        """The `batch_size` prompts of `step`, from 0. Raises IndexError where there is no such step."""
        if not 0 <= step < len(self):
            raise IndexError(f"there is no step {step}: the prompts last for {len(self)} steps")
        episode, position = divmod(step, self.steps_per_episode)
        order = _order(self._sizes, self._quotas, self._seed, episode)
        start = position * self._batch_size
        return [self._prompts[index] for index in order[start : start + self._batch_size]]


def _shares(prompts: Sequence[Prompt], probs: Sequence[Fraction] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompts of each source, and how many of them a pass has."""
    if probs is None:
        return (len(prompts),), (len(prompts),)
    counts = Counter(prompt.source_index for prompt in prompts)
    sizes = tuple(counts[index] for index in range(len(probs)))
    whole = min(size / prob for size, prob in zip(sizes, probs, strict=True))
    quotas = tuple(int(prob * whole) for prob in probs)
    if 0 in quotas:
        raise DataError(
            f"the sources of data.prompt_dataset have {', '.join(map(str, sizes))} usable prompts, and by "
            f"data.prompt_probs a pass would have {', '.join(map(str, quotas))} of them. Each needs one."
        )
    return sizes, quotas


@lru_cache(maxsize=2)
def _order(sizes: tuple[int, ...], quotas: tuple[int, ...], seed: int, episode: int) -> tuple[int, ...]:
    """Places of the prompts of a pass: of each source its quota, drawn without replacement, then all in one order."""
    generator = np.random.default_rng((seed, episode))
    ends = np.cumsum(sizes)
    drawn = [
        np.arange(end - size, end) if quota == size else end - size + generator.choice(size, quota, replace=False)
        for end, size, quota in zip(ends, sizes, quotas, strict=True)
    ]
    return tuple(generator.permutation(np.concatenate(drawn)).tolist())


class _Drops:
    """Counts dropped rows and refuses too many."""

    def __init__(self, max_rate: float, counts: Counter[str] | None = None) -> None:
        self._max_rate = max_rate
        self._counts = counts or Counter()
        self._first: dict[str, str] = {}

    @property
    def counts(self) -> dict[str, int]:
        return dict(self._counts)

    def add(self, reason: str, prompt: Prompt) -> None:
        self._counts[reason] += 1
        self._first.setdefault(reason, f", first {prompt.source} row {prompt.row}")

    def check(self, rows: int, hint: str = "") -> None:
        dropped = self._counts.total()
        if dropped <= self._max_rate * rows and dropped < rows:
            return
        reasons = "; ".join(f"{count} {reason}{self._first.get(reason, '')}" for reason, count in self._counts.items())
        raise DataError(
            f"{dropped} of {rows} rows cannot be used ({reasons}), and data.max_dropped_rate is {self._max_rate}. "
            f"Mend the rows, or raise that share.{hint}"
        )


@dataclass(frozen=True)
class _File:
    """The rows of one file, and the source it belongs to."""

    rows: Rows
    source_index: int
    datasource: str  # of the rows that name none


def _files(dataset: str, split: str) -> Iterator[_File]:
    sources = listed(dataset)
    for index, source in enumerate(sources):
        datasource = source_name(source, split) if len(sources) > 1 else DEFAULT_DATASOURCE
        for rows in read_source(source, split):
            yield _File(rows, index, datasource)


def _check_columns(rows: Rows, data: DataSection, needs_reference: bool, needing: str) -> None:
    there = f"the columns are {', '.join(rows.columns) or '(none)'}"
    if data.input_key not in rows.columns:
        raise DataError(f"{rows.name} has no column `{data.input_key}` for the prompt; {there}. Set data.input_key.")
    if needs_reference and data.label_key not in rows.columns:
        raise DataError(
            f"{rows.name} has no column `{data.label_key}` with reference answers, which {needing} needs; {there}. "
            "Set data.label_key."
        )


def _prompt(row: Row, data: DataSection, file: _File, number: int) -> Prompt:
    source = file.rows.name
    where = f"{source}, row {number}"
    question, messages = _conversation(row.get(data.input_key), data, where)
    text = fill_template(data.input_template, question) if question.strip() else question
    reference = _text(row.get(data.label_key), data.label_key, where) if data.label_key else ""
    taken = {data.input_key, data.label_key, data.datasource_key, ID_COLUMN, SPLIT_COLUMN}
    own_id = row.get(ID_COLUMN)
    datasource = _text(row.get(data.datasource_key), data.datasource_key, where).strip() or file.datasource
    if datasource == OVERALL:
        raise DataError(
            f"{where}: the data set is called {OVERALL}, which is what all data sets together are called. Rename it."
        )
    return Prompt(
        id=f"{PurePath(source).name}:{number}" if own_id in (None, "") else str(own_id),
        text=text,
        messages=messages or ({"role": "user", "content": text},),
        reference=reference if reference.strip() else None,
        datasource=datasource,
        source=source,
        row=number,
        metadata={name: value for name, value in row.items() if name not in taken},
        source_index=file.source_index,
        question=question,
    )


def _conversation(value: Any, data: DataSection, where: str) -> tuple[str, tuple[Message, ...]]:
    """The row's own prompt as a text, and its chat messages where it is written in these."""
    if not isinstance(value, list):
        return _text(value, data.input_key, where), ()
    if not data.apply_chat_template or data.input_template is not None:
        raise DataError(
            f"{where}: `{data.input_key}` holds chat messages, which need data.apply_chat_template and no "
            "data.input_template."
        )
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(f"{where}: each message in `{data.input_key}` needs a `role` and a `content`, both texts.")
    return "\n\n".join(message["content"] for message in value), tuple(value)


def _text(value: Any, column: str, where: str) -> str:
    """The text itself; empty for an absent value."""
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        article = "an" if kind[0] in "aeiou" else "a"
        raise DataError(
            f"{where}: `{column}` is {article} {kind} ({str(value)[:40]}), not a text. Write it as one, or name "
            "another column."
        )
    return value
