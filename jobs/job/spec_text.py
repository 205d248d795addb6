"""The spec as commented YAML: every field with its default, its description and what is allowed."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter

from jobs.job.spec import Spec, make_spec
from jobs.words.errors import SpecError
from spd_core.law import Auto, Cspd, Null, Plain, SamplerLaw, Speculative

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<", "pattern": "matches"}

_METHODS = (
    "# Methods and their fields; `method: plain` is short for one with its defaults.",
    "# A method that is named takes the values below for what is not given.",
    "# A spec that names none measures a few for a moment: its values, above, are others than those of auto below.",
)


def _defaults() -> Spec:
    try:
        fixed = make_spec({})
        return Spec(**{name: getattr(fixed, name) for name in Spec.model_fields})
    except SpecError:
        # Without the default pair's card, the law's own defaults.
        return Spec(law=SamplerLaw(), method=Plain())


def _allowed(schema: dict[str, Any]) -> str:
    kinds = [schema, *schema.get("anyOf", [])]
    parts = [f"one of {', '.join(map(str, kind['enum']))}" for kind in kinds if "enum" in kind]
    parts += [f"{sign} {kind[bound]}" for kind in kinds for bound, sign in _BOUNDS.items() if bound in kind]
    return f" ({', '.join(parts)})" if parts else ""


def _lines(model: BaseModel, indent: str) -> list[str]:
    properties = type(model).model_json_schema()["properties"]
    lines = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        schema = properties[name]
        text = field.description or ""
        if text or _allowed(schema):
            lines.append(f"{indent}# {text}{_allowed(schema)}")
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", *_lines(value, f"{indent}  ")]
        else:
            plain = TypeAdapter(type(value)).dump_python(value, mode="json")
            shown = yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
            lines.append(f"{indent}{name}: {shown}")
    return lines


def _method_lines() -> list[str]:
    lines = ["", *_METHODS]
    for method in (Plain(), Cspd(), Speculative(), Null(), Auto()):
        floor = "at least " if isinstance(method, Auto) else ""
        lines.append(f"# method {method.name}, guarantee {floor}{method.guarantee}: {(method.__doc__ or '').strip()}")
        lines += [f"#   {line}" for line in _lines(method, "") if not line.startswith("name:")]
    return lines


def spec_as_yaml() -> str:
    """A spec file that holds every default; what it says is what a job does without one."""
    # An output that follows from the name must not stay behind when someone edits the name.
    spec = _defaults().model_copy(update={"output": ""})
    return "\n".join([*_lines(spec, ""), *_method_lines(), ""])
