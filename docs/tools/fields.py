"""An extension of Griffe: fields of configs are documented with types, defaults and help texts.

Configs of transformers are dataclasses made by a decorator that Griffe does not know, and describe their fields in the
class docstring; configs of PEFT describe them in the metadata of the fields.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from typing import Any

import griffe


class ConfigFields(griffe.Extension):
    """Give documented classes without `__init__` the parameters that their fields stand for."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Complete the fields of one class."""
        imported = None
        if cls.path.startswith("hf_any3d.") and cls.docstring and any(map(is_field, cls.members.values())):
            # With the fields that a configuration adds to its docstring when it is imported.
            imported = getattr(importlib.import_module(cls.parent.path), cls.name, None)
            cls.docstring.value = inspect.getdoc(imported) or cls.docstring.value
        for field in own_fields(cls):
            read_metadata(field)
        if cls.docstring and "Args:" in cls.docstring.value and "__init__" not in cls.members:
            keyword = griffe.ParameterKind.keyword_only
            parameters = [
                griffe.Parameter(field.name, annotation=field.annotation, kind=keyword, default=field.value)
                for field in all_fields(cls)
            ]
            parameters += inherited_parameters(imported, {field.name for field in parameters}, cls.docstring.value)
            made = griffe.Function("__init__", parameters=griffe.Parameters(*parameters), lineno=0, endlineno=0)
            cls.set_member("__init__", made)


def own_fields(cls: griffe.Class) -> list[griffe.Attribute]:
    """Return the fields that a class declares itself."""
    return [member for member in cls.members.values() if isinstance(member, griffe.Attribute) and is_field(member)]


def all_fields(cls: griffe.Class) -> list[griffe.Attribute]:
    """Return the fields of a class and of its bases in the same module, in the order of a dataclass."""
    fields: dict[str, griffe.Attribute] = {}
    for name in reversed(cls.bases):
        base = cls.parent.members.get(str(name)) if cls.parent else None
        if isinstance(base, griffe.Class):
            fields |= {field.name: field for field in all_fields(base)}
    return list((fields | {field.name: field for field in own_fields(cls)}).values())


def inherited_parameters(imported: Any, known: set[str], text: str) -> list[griffe.Parameter]:
    """Return the fields that a docstring names and that bases in other modules declare."""
    if not dataclasses.is_dataclass(imported):
        return []
    parameters = []
    for field in dataclasses.fields(imported):
        if field.name in known or not re.search(rf"^\s*{field.name}:", text, re.MULTILINE):
            continue
        annotation = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        default = None if field.default is dataclasses.MISSING else repr(field.default)
        kind = griffe.ParameterKind.keyword_only
        parameters.append(griffe.Parameter(field.name, annotation=annotation, kind=kind, default=default))
    return parameters


def is_field(member: Any) -> bool:
    """Return whether an attribute is a field with a type, not a constant of the class."""
    # Griffe takes the type out of ClassVar, and marks other attributes as those of instances too.
    has_type = member.annotation is not None and "instance-attribute" in member.labels
    return has_type and not member.name.startswith("_")


def read_metadata(attribute: Any) -> None:
    """Take default and help text of `field(default=…, metadata={"help": …})`."""
    if not str(attribute.value or "").startswith("field("):
        return
    call = ast.parse(str(attribute.value), mode="eval").body
    assert isinstance(call, ast.Call)
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}
    default = arguments.get("default", arguments.get("default_factory"))
    attribute.value = None if default is None else ast.unparse(default)
    for key, text in zip(*_items(arguments.get("metadata")), strict=True):
        if isinstance(key, ast.Constant) and key.value == "help" and isinstance(text, ast.Constant):
            attribute.docstring = griffe.Docstring(str(text.value), parent=attribute)


def _items(node: ast.expr | None) -> tuple[list, list]:
    return (node.keys, node.values) if isinstance(node, ast.Dict) else ([], [])
