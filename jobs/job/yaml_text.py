"""YAML as people mean it: the scalars of YAML 1.2, no key twice, no value of another type behind anyone's back.

PyYAML reads YAML 1.1, where ``1:30`` is 90, ``010`` is 8 and ``no`` is false, and where of two equal keys the last one
counts. Here ``1:30`` and ``no`` are text, ``010`` and a repeated key are refused. Aliases are bounded by what they
expand to, so that a few lines cannot become a billion values.
"""

from __future__ import annotations

import codecs
import math
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from jobs.words.errors import SpecError
from spd_core.complaints import shown

#: Bytes of a spec file: a list of ten thousand labels has 50,000.
LARGEST_FILE = 1 << 20
#: Values that a document holds, each alias counted with all that it repeats.
MOST_VALUES = 200_000
#: Lists and mappings inside each other.
DEEPEST = 64

_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_MERGE = "tag:yaml.org,2002:merge"
_PLAIN = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))


class YamlError(ValueError):
    """A text that is not read; the message says where and why, in one line."""


def _where(node: Node) -> str:
    return f"line {node.start_mark.line + 1}"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Nodes with the implicit types of YAML 1.2's core schema, constructed by `_value`."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _size(node: Node, sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """Values below a node, aliases expanded; refuses what is too deep, too large or inside itself."""
    if isinstance(node, ScalarNode):
        return 1
    if id(node) in above:
        raise YamlError(f"{_where(node)}: an alias of what it is in")
    if len(above) >= DEEPEST:
        raise YamlError(f"{_where(node)}: more than {DEEPEST} lists and mappings inside each other")
    if id(node) not in sizes:
        inside = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else node.value
        sizes[id(node)] = 1 + sum(_size(part, sizes, (*above, id(node))) for part in inside)
        if sizes[id(node)] > MOST_VALUES:
            raise YamlError(
                f"{_where(node)}: more than {MOST_VALUES:,} values, aliases counted with all that they repeat"
            )
    return sizes[id(node)]


def _scalar(node: ScalarNode) -> Any:
    text, kind = node.value, node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        if _LEADING_ZERO.fullmatch(text):
            octal = re.fullmatch(r"0+([1-7][0-7]*)", text)
            allowed = f"{int(text[:40])}, without the leading 0" + (f", or 0o{octal[1]}" if octal else "")
            raise YamlError(f"{_where(node)}: got {text[:40]}, allowed: {allowed[:80]}")
        digits = text.lstrip("+-")
        if len(digits) > 100:
            raise YamlError(f"{_where(node)}: a number of {len(digits)} digits")
        return int(text, 0) if digits[:2] in ("0o", "0x") else int(text)
    if kind == "float":
        special = {".inf": math.inf, ".nan": math.nan}.get(text.lower().lstrip("+-"))
        return float(text) if special is None else math.copysign(special, -1 if text[0] == "-" else 1)
    return text


def _value(node: Node) -> Any:
    if node.tag != _MERGE and node.tag not in _PLAIN:
        raise YamlError(f"{_where(node)}: got the type {node.tag.rpartition(':')[2]!r}, allowed: plain values")
    if isinstance(node, ScalarNode):
        try:
            return _scalar(node)
        except ValueError as error:
            raise error if isinstance(error, YamlError) else YamlError(f"{_where(node)}: {error}") from error
    if isinstance(node, SequenceNode):
        return [_value(part) for part in node.value]
    return _mapping(node)


def _mapping(node: Node) -> dict[Any, Any]:
    if not isinstance(node, MappingNode):
        raise YamlError(f"{_where(node)}: after << must come a mapping")
    merged: dict[Any, Any] = {}
    direct: dict[Any, Any] = {}
    for key, value in node.value:
        if key.tag == _MERGE:
            parts = value.value if isinstance(value, SequenceNode) else [value]
            for part in reversed(parts):
                merged.update(_mapping(part))
            continue
        name = _value(key)
        if isinstance(name, (dict, list)):
            raise YamlError(f"{_where(key)}: a key must be a word")
        if name in direct:
            raise YamlError(f"{_where(key)}: {name} is given a second time")
        direct[name] = _value(value)
    return merged | direct


def parse_yaml(text: str | bytes) -> Any:
    """The value of one document; None for an empty one.

    Raises:
        YamlError: no YAML, or what this module's first lines refuse.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _size(node, {}, ())
        return _value(node)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise YamlError(f"{where}{error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise YamlError(" ".join(str(error).split())[:200]) from error
    except RecursionError as error:
        raise YamlError(f"more than {DEEPEST} lists and mappings inside each other") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: Path) -> Any:
    """The value of a file's one document.

    Raises:
        OSError: it cannot be read.
        YamlError: as `parse_yaml`; or it is too large, or not UTF-8 (nor UTF-16 with its mark).
    """
    with path.open("rb") as file:
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise YamlError(f"more than {LARGEST_FILE:,} bytes; put long lists of labels into a request file")
    if b"\0" in data and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise YamlError("bytes that are no text, or UTF-16 without its mark; allowed: UTF-8 text")
    return parse_yaml(data)


def parse_assignment(text: str, flag: str, form: str, prefix: str = "") -> tuple[str, Any]:
    """Name and value of a ``name=value`` argument, its value read as YAML.

    Args:
        text: the argument.
        flag: that it was given to, for errors.
        form: what is allowed, for errors.
        prefix: of the name, for errors.

    Raises:
        SpecError: a text of another form, or no YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise SpecError(f"{flag}: got {text!r}, allowed: {form}")
    try:
        return name, parse_yaml(value)
    except YamlError as error:
        raise SpecError(f"{prefix}{name}: got {shown(value)}, allowed: a YAML value ({error})") from error
