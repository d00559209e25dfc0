"""YAML by the 1.2 core schema, without 1.1's surprises, and with every key once.

In 1.1 (PyYAML's own reading) `1e-5` is a text, `no` is false, `1:30` is 90, `010` is 8 and `2024-01-01` a date.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

_NULL, _BOOL, _INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "merge"))
_INT_PATTERN = re.compile(r"^[-+]?[0-9]+(?:_[0-9]+)*$")
_FLOAT_PATTERN = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the resolvers of YAML 1.2 in place of 1.1's."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own attribute)

    def construct_number(self, node: ScalarNode) -> int | float:
        text = str(self.construct_scalar(node)).lower()
        try:
            if node.tag == _INT:
                return int(text)
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError as error:
            raise ConstructorError(None, None, f"{text[:40]} cannot be read as a number", node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes texts which 1.2 reads as numbers, and never writes anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_implicit_resolver(_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])
for _tag, _pattern, _starts in ((_INT, _INT_PATTERN, "-+0123456789"), (_FLOAT, _FLOAT_PATTERN, "-+.0123456789")):
    _Loader.add_implicit_resolver(_tag, _pattern, list(_starts))
    _Loader.add_constructor(_tag, _Loader.construct_number)
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_starts))


def parse(text: str) -> Any:
    """The one document in `text`, as plain Python values; an empty text is None.

    Raises yaml.YAMLError for what is not YAML, has several documents, unknown tags, or a key twice in one mapping.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_duplicate_keys(node, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def dump(values: Any) -> str:
    """Block-style YAML in the order of `values`, read back equal by `parse` and by YAML 1.1 readers."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def dump_inline(values: Any) -> str:
    """The same on one line."""
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=True)
    return text.removesuffix("...\n").strip()


def _refuse_duplicate_keys(node: Node, visited: set[int]) -> None:
    """Python's mapping would silently keep the last of two equal keys."""
    if id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, SequenceNode):
        for item in node.value:
            _refuse_duplicate_keys(item, visited)
    elif isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, ScalarNode):
                if key.value in seen and key.tag != _MERGE:
                    raise ConstructorError(None, None, f"the key `{key.value}` is written twice", key.start_mark)
                seen.add(key.value)
            _refuse_duplicate_keys(value, visited)
