"""How every option is declared (default, meaning, unit, source), and how the declarations are read back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, TypeGuard, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

PAPER = "paper"
OPENRLHF = "OpenRLHF 0.11.2"
OURS = "ours"


class Section(BaseModel):
    """A group of options. Unknown keys are refused; a loaded configuration cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    # On the command line: a short name for the option that a command is mostly called with, as in `--data FILE`.
    shorthands: ClassVar[dict[str, str]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would read true as 1 where a number is wanted."""
        annotation = cls.model_fields[cast(str, info.field_name)].annotation
        if isinstance(value, bool) and bool not in _alternatives(annotation):
            raise ValueError(f"{str(value).lower()} is for options that are switched on or off")
        return value


def option(
    default: Any, meaning: str, *, unit: str = "", source: str = OURS, secret: bool = False, **constraints: Any
) -> Any:
    """A pydantic field whose unit and source can be read back for the reference page.

    `default=...` (Ellipsis) marks a required option; a `secret` one is never written to a file; `constraints` are
    pydantic's (`ge`, `gt`, `le`, `min_length`, ...).
    """
    details: JsonDict = {"unit": unit, "source": source, "secret": secret}
    return Field(default, description=meaning, json_schema_extra=details, **constraints)


def section(cls: type[Section]) -> Any:
    """A nested section with all its defaults."""
    return Field(default_factory=cls, description=(cls.__doc__ or "").strip().splitlines()[0])


def changed(section: Section) -> set[str]:
    """Names of the options that do not have their default."""
    fields = type(section).model_fields
    return {
        name for name, field in fields.items() if getattr(section, name) != field.get_default(call_default_factory=True)
    }


@dataclass(frozen=True)
class Option:
    """One declared option, under its dotted name."""

    name: str
    annotation: Any
    default: Any
    required: bool
    meaning: str
    unit: str
    source: str
    secret: bool

    @property
    def is_switch(self) -> bool:
        return bool in _alternatives(self.annotation)

    @property
    def is_text(self) -> bool:
        """Whether every value but null is a text."""
        return all(isinstance(choice, str) for choice in self.choices) if self.choices else str in self._kinds

    @property
    def allows_null(self) -> bool:
        return NoneType in _alternatives(self.annotation)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The allowed values, where they are listed."""
        return tuple(choice for kind in self._kinds if get_origin(kind) is Literal for choice in get_args(kind))

    @property
    def item_kinds(self) -> dict[str, type[Section]]:
        """The section of each kind of item, for a list option whose items name their `kind`."""
        items = get_args(self.annotation)[0] if get_origin(self.annotation) is tuple else None
        if get_origin(items) is not Annotated:
            return {}
        tagged = [get_args(kind) for kind in get_args(get_args(items)[0])]
        return {tag.tag: section for section, tag in tagged}

    @property
    def _kinds(self) -> list[Any]:
        return [kind for kind in _alternatives(self.annotation) if kind is not NoneType]


def subsections(cls: type[Section]) -> dict[str, type[Section]]:
    """The sections directly inside `cls`, by name."""
    annotations = {name: field.annotation for name, field in cls.model_fields.items()}
    return {name: kind for name, kind in annotations.items() if _is_section(kind)}


def options(cls: type[Section], prefix: str = "", *, deep: bool = True) -> Iterator[Option]:
    """Every option of `cls` in the order of declaration, with those of its subsections where `deep`."""
    nested = subsections(cls)
    for name, field in cls.model_fields.items():
        if name not in nested:
            yield _option(prefix + name, field)
        elif deep:
            yield from options(nested[name], f"{prefix}{name}.")


def section_names(cls: type[Section], prefix: str = "") -> Iterator[str]:
    """The dotted name of every section below `cls`."""
    for name, nested in subsections(cls).items():
        yield prefix + name
        yield from section_names(nested, f"{prefix}{name}.")


def _option(name: str, field: FieldInfo) -> Option:
    details = cast("dict[str, Any]", field.json_schema_extra)
    return Option(
        name=name,
        annotation=field.annotation,
        default=None if field.is_required() else field.default,
        required=field.is_required(),
        meaning=field.description or "",
        unit=details["unit"],
        source=details["source"],
        secret=details["secret"],
    )


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of `A | B | None`; a plain type alone. A Literal or generic stays whole."""
    return get_args(annotation) if NoneType in get_args(annotation) else (annotation,)


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)
