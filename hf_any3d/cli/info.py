"""`hf-any3d info`: what a model is, without its weights."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hf_any3d.cli.common import quieten_libraries, told_in_one_line
from hf_any3d.messages import opened, say, say_json


def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or hub name of a model.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model on the hub.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what a model is: encoder, adapters, parameters, labels, inputs.

    Only its configuration files are fetched, no weights.
    """
    with told_in_one_line():
        quieten_libraries()
        from hf_any3d.model_facts import model_facts

        with opened(model):
            facts = model_facts(model, revision)
    if as_json:
        say_json(facts)
        return
    wide = max(len(name) for name in facts)
    for name, value in facts.items():
        say(f"{name:<{wide}}  {_plain(value)}")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else str(value)
