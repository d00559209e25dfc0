"""Prompts with the responses to imitate, for supervised fine-tuning."""

from __future__ import annotations

from typing import Any

from openrlhf_maestro.config.sections import listed
from openrlhf_maestro.config.sft import SftDataSection
from openrlhf_maestro.data.readers import Row, Rows, read_source
from openrlhf_maestro.data.templates import fill_template
from openrlhf_maestro.errors import DataError

Demonstration = dict[str, Any]  # `prompt` and `response`: both texts, or both lists of chat messages


def load_demonstrations(data: SftDataSection) -> list[Demonstration]:
    """The rows of data.dataset with their templates filled; chat messages take none.

    Raises:
        DataError: a source cannot be read, lacks a column, or has a row without a prompt or a response.
        ConfigError: a template cannot be read.
    """
    found: list[Demonstration] = []
    for source in listed(data.dataset):
        for rows in read_source(source, data.dataset_split):
            _check_columns(rows, data)
            found += [_demonstration(row, data, f"{rows.name}, row {number}") for number, row in rows.numbered]
    if not found:
        raise DataError(f"{data.dataset} has no rows in split `{data.dataset_split}`.")
    return found[: data.max_samples]


def _check_columns(rows: Rows, data: SftDataSection) -> None:
    for option, key in (("data.input_key", data.input_key), ("data.output_key", data.output_key)):
        if key not in rows.columns:
            there = ", ".join(rows.columns) or "(none)"
            raise DataError(f"{rows.name} has no column `{key}`; the columns are {there}. Set {option}.")


def _demonstration(row: Row, data: SftDataSection, where: str) -> Demonstration:
    prompt, response = row.get(data.input_key), row.get(data.output_key)
    for key, value in ((data.input_key, prompt), (data.output_key, response)):
        if not isinstance(value, str | list) or not value or (isinstance(value, str) and not value.strip()):
            raise DataError(f"{where}: `{key}` holds no text and no chat messages. Mend the row, or take it out.")
    if isinstance(prompt, str) and isinstance(response, str):
        return {
            "prompt": fill_template(data.input_template, prompt),
            "response": fill_template(data.output_template, response),
        }
    if data.input_template or data.output_template:
        raise DataError(f"{where} holds chat messages, for which there are no templates: take data.*_template away.")
    if isinstance(prompt, str) or isinstance(response, str):
        raise DataError(
            f"{where}: `{data.input_key}` and `{data.output_key}` are a text and chat messages. Make both one."
        )
    return {"prompt": prompt, "response": response}
