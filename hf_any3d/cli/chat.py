"""`hf-any3d chat`: talk about a point cloud in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import open_chat, quieten_libraries, tell, told_in_one_line
from hf_any3d.messages import opened, printable, say

HELP = "/open FILE talks about another cloud, /restart begins anew, /quit leaves; Ctrl-C stops an answer."


def chat(
    model: Annotated[str, typer.Argument(help="Directory or hub name of a point cloud language model.")],
    file: Annotated[Path, typer.Argument(help="Point file or mesh to talk about.")],
    template: Annotated[
        str | None, typer.Option(help="Prompt of the processor, such as demo or evaluation; its default if left out.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="How freely to draw words; 0 takes the likeliest.")] = 0.2,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Share of likeliest words that are drawn from.")] = 0.9,
    repetition_penalty: Annotated[float, typer.Option(min=0.1, help="Above 1, words said become less likely.")] = 1.05,
    seed: Annotated[int | None, typer.Option(help="For the same answers again.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps …; by default the fastest there is.")
    ] = None,
) -> None:
    """Talk about a point cloud: a line is a question, the answer comes word by word.

    /open FILE talks about another cloud, /restart begins anew, /quit leaves, and Ctrl-C stops an answer.
    """
    generation: dict[str, Any] = {"max_new_tokens": max_new_tokens, "repetition_penalty": repetition_penalty}
    if temperature:
        generation |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 50}
    else:
        generation["do_sample"] = False
    with told_in_one_line():
        _must_exist(file)
        with opened(model, "cannot answer"):
            session = _open(model, file, device, template, generation)
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    if sys.stdin.isatty():
        say(HELP)
    while (line := _read_line()) is not None:
        command, _, rest = line.partition(" ")
        if command == "/quit":
            break
        if command == "/restart":
            session.restart()
        elif command == "/open":
            _reopen(session, rest.strip())
        elif command.startswith("/"):
            tell(f"no command {command}; {HELP}")
        elif line:
            _answer(session, model, line)


def _must_exist(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")


def _open(model: str, file: Path, device: str | None, template: str | None, generation: dict[str, Any]) -> Any:
    quieten_libraries()
    from hf_any3d.chat.session import ChatSession

    return ChatSession(open_chat(model, device, template), str(file), chat_template=template, **generation)


def _read_line() -> str | None:
    """The next line without blanks around it; None where there is none any more."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _reopen(session: Any, name: str) -> None:
    try:
        _must_exist(Path(name))
        session.restart(name)
    except (ValueError, OSError, ImportError) as error:
        tell(error)


def _answer(session: Any, model: str, question: str) -> None:
    pieces = session.stream(question)
    try:
        with opened(model, "cannot answer"):
            for piece in pieces:
                # A model's words are not to steer the terminal.
                typer.echo(printable(piece, keep="\n"), nl=False)
                sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()
    except (ValueError, OSError) as error:
        tell(error)
    typer.echo()
