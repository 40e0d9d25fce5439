"""`hf-any3d info`: facts about a model, without downloading its weights."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hf_any3d.cli.common import Revision, one_line_errors, quiet_libraries
from hf_any3d.messages import model_errors, print_json, print_line


def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or hub name of a model.")],
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Describe a model: encoder, adapters, parameters, labels, inputs.

    Only its configuration files are downloaded, no weights.
    """
    with one_line_errors():
        quiet_libraries()
        from hf_any3d.model_facts import model_facts

        with model_errors(model):
            facts = model_facts(model, revision)
    if as_json:
        print_json(facts)
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print_line(f"{name:<{width}}  {_format(value)}")


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else str(value)
