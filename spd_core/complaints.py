"""What is wrong with a value, in our words: ``field: got value, allowed: ..., did you mean ...?``

The one place that knows pydantic's errors. What is allowed comes from the schema of the field, so that a message always
names the whole range and not the one bound that was met first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

from spd_core.alike import did_you_mean

Schema = dict[str, Any]
_SECRET = re.compile("key|secret|token|password|credential", re.IGNORECASE)
_LONGEST = 60
#: Error types of pydantic, and those among them whose message is our own.
_PYDANTIC = frozenset(get_args(ErrorType))
_OWN = frozenset({"value_error", "assertion_error"})


def shown(value: Any) -> str:
    """A value for a message: short, and on one line."""
    if value is None:
        return "nothing"
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        return f"a number of about {value.bit_length() * 3 // 10} digits"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _branches(node: Schema, root: Schema) -> Iterator[Schema]:
    """The schemas a node may be, references followed."""
    while "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]] | {k: v for k, v in node.items() if k != "$ref"}
    if "allOf" in node and len(node["allOf"]) == 1:
        yield from _branches(node["allOf"][0], root)
    elif "anyOf" in node or "oneOf" in node:
        for each in node.get("anyOf", []) + node.get("oneOf", []):
            yield from _branches(each, root)
    else:
        yield node


def _tag(node: Schema, root: Schema, part: str) -> Schema | None:
    mapping = node.get("discriminator", {}).get("mapping", {})
    return next(_branches({"$ref": mapping[part]}, root)) if part in mapping else None


def _walk(root: Schema, where: Sequence[int | str]) -> tuple[list[str], Schema]:
    """The path of a problem as a person writes it, as far as there are such fields, and the schema there."""
    node, path = root, []
    for part in where:
        if isinstance(part, str) and (tagged := _tag(node, root, part)) is not None:
            node = tagged
            continue
        for each in _branches(node, root):
            if isinstance(part, str) and part in each.get("properties", {}):
                node = each["properties"][part]
                path.append(part)
                break
            if isinstance(part, int) and "items" in each:
                node = each["items"]
                break
        else:
            break
    return path, node


def _range(node: Schema, whole: bool) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if whole and "exclusiveMaximum" in node:
        high = node["exclusiveMaximum"] - 1
    above = node.get("exclusiveMinimum")

    def number(value: float) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:,.15g}"

    if low is not None and high is not None:
        return f" from {number(low)} to {number(high)}"
    parts = [f"above {number(above)}"] if above is not None else []
    parts += [f"at least {number(low)}"] if low is not None else []
    parts += [f"at most {number(high)}"] if high is not None else []
    return "".join(f", {part}" for part in parts)


def _words(node: Schema, root: Schema) -> list[str]:
    """What is allowed at a node, one entry a kind of value."""
    if "allowed" in node:
        return [node["allowed"]]
    if mapping := node.get("discriminator", {}).get("mapping"):
        return [", ".join(mapping)]
    found = []
    for each in _branches(node, root):
        kind = each.get("type")
        if "allowed" in each:
            found.append(each["allowed"])
        elif "const" in each or "enum" in each:
            found.append(", ".join(map(str, each.get("enum", [each.get("const")]))))
        elif kind in ("integer", "number"):
            found.append(f"a {'whole ' if kind == 'integer' else ''}number{_range(each, kind == 'integer')}")
        elif kind == "array":
            inside = " or ".join(_words(each["items"], root)) if "items" in each else "values"
            most = f", at most {each['maxItems']:,}" if "maxItems" in each else ""
            found.append(f"a list, each {inside}{most}")
        elif kind == "object":
            fields = ", ".join(each.get("properties", {}))
            found.append(f"a mapping of the fields {fields}" if fields else "a mapping")
        else:
            kinds = {"string": "text", "boolean": "true or false", "null": "nothing"}
            found.append(kinds.get(str(kind), "another value"))
    return list(dict.fromkeys(found))


def allowed(model: type[BaseModel], field: str) -> str:
    """What is allowed in a field of a model, in words."""
    root = model.model_json_schema()
    return " or ".join(_words(root["properties"][field], root))


def _choices(node: Schema, root: Schema) -> list[str]:
    named = list(node.get("discriminator", {}).get("mapping", {}))
    for each in _branches(node, root):
        named += map(str, each.get("enum", [each["const"]] if "const" in each else []))
    return named


def _places(node: Schema, root: Schema, path: str = "") -> Iterator[str]:
    """Every field path of a schema, those of all methods too."""
    for each in _branches(node, root):
        for name, below in each.get("properties", {}).items():
            place = f"{path}.{name}" if path else name
            yield place
            yield from _places(below, root, place)


def refuse_switches(raw: Any, model: type[BaseModel]) -> str | None:
    """The complaint about the first true or false that stands where only a number or text may; None: there is none.

    Pydantic takes true for 1.
    """
    root = model.model_json_schema()

    def first(value: Any, where: tuple[int | str, ...]) -> str | None:
        if isinstance(value, (dict, list)):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            return next((text for name, each in pairs if (text := first(each, (*where, name)))), None)
        path, node = _walk(root, where)
        named = [part for part in where if isinstance(part, str)]
        if not isinstance(value, bool) or path != named or path[:1] == ["storage_options"]:
            return None
        if any(each.get("type") in (None, "boolean") for each in _branches(node, root)):
            return None
        return f"{'.'.join(path)}: got {str(value).lower()}, allowed: {' or '.join(_words(node, root))}"

    return first(raw, ())


def _unknown(problem: ErrorDetails, path: list[str], node: Schema, root: Schema, fields: str) -> str:
    """A field that does not exist; its value is left out where it may be a secret under a mistyped name."""
    name, value = str(problem["loc"][-1]), problem["input"]
    siblings = [each for branch in _branches(node, root) for each in branch.get("properties", {})]
    near = did_you_mean(name, siblings).replace("mean ", f"mean {'.'.join([*path, ''])}")
    methods = root["properties"].get("method", {}).get("discriminator", {}).get("mapping", {})
    owners = [method for method in methods if name in next(_branches({"$ref": methods[method]}, root))["properties"]]
    if path == ["method"] and owners:
        near = f", a field of method {' and '.join(owners)}"
    places = list(dict.fromkeys(_places(root, root)))
    elsewhere = [place for place in places if place.rpartition(".")[2] == name]
    if elsewhere and not near:
        near = f", did you mean {' or '.join(elsewhere[:3])}?"
    near = near or did_you_mean(name, places, leaf=True)
    open_value = not isinstance(value, (dict, list)) and not _SECRET.search(name)
    got = f", got {shown(value)}" if open_value else ""
    return f"{'.'.join([*path, name])}: unknown field{got}, allowed: {fields}{near}"


def one_line(
    error: ValidationError,
    model: type[BaseModel],
    fields: str = "the fields that `spd spec` lists",
    whole: str = "spec",
) -> str:
    """The first problem of a validation error.

    Args:
        error: of pydantic.
        model: that was to be made.
        fields: where the fields are told that exist.
        whole: what the values make together.
    """
    problem = error.errors()[0]
    root = model.model_json_schema()
    path, node = _walk(root, problem["loc"])
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown(problem, path, node, root, fields)
    value = problem["input"]
    hidden = path[:1] == ["storage_options"]
    if problem["type"].startswith("union_tag") and isinstance(value, dict):
        value = value.get("name")
    place = ".".join(path) or whole
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    own = problem["type"] in _OWN or problem["type"] not in _PYDANTIC
    allowed = message if own else " or ".join(_words(node, root))
    near = did_you_mean(value, _choices(node, root)) if isinstance(value, str) and not hidden else ""
    got = "a value that is not shown" if hidden else shown(value)
    return f"{place}: got {got}, allowed: {allowed}{near}"
