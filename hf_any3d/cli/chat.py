"""`hf-any3d chat`: ask a model about a point cloud in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.errors import print_error
from hf_any3d.cli.inputs import find_inputs
from hf_any3d.cli.opening import CHAT, model_for, open_with_transformers
from hf_any3d.cli.options import Device, Template
from hf_any3d.utils.messages import model_errors, print_line, printable

HELP = "/open FILE loads another file, /restart clears the conversation, /quit exits; Ctrl-C interrupts an answer."


def chat(
    model: Annotated[str, typer.Argument(help="Directory or Hub name of a point cloud language model.")],
    file: Annotated[Path, typer.Argument(help="Point cloud or mesh file to ask about.")],
    template: Template = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens in an answer.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 for greedy decoding.")] = 0.2,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Probability mass for nucleus (top-p) sampling.")] = 0.9,
    repetition_penalty: Annotated[
        float, typer.Option(min=0.1, help="Repetition penalty; values above 1 make repetition less likely.")
    ] = 1.05,
    seed: Annotated[int | None, typer.Option(help="Random seed, for reproducible answers.")] = None,
    device: Device = None,
) -> None:
    """Chat with a model about a point cloud. Type one question per line; answers are streamed.

    /open FILE loads another file, /restart clears the conversation, /quit exits, and Ctrl-C interrupts an answer.
    """
    generation: dict[str, Any] = {"max_new_tokens": max_new_tokens, "repetition_penalty": repetition_penalty}
    if temperature:
        # 50 was the default of transformers when the model was released.
        generation |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 50}
    else:
        generation["do_sample"] = False
    find_inputs([file])  # before the model is opened
    pipe = open_with_transformers(CHAT, model_for(model, "chat").name, device, template)
    from hf_any3d.tasks.chat.session import ChatSession

    with model_errors(model, "cannot answer"):
        session = ChatSession(pipe, str(file), chat_template=template, **generation)
    # After all that may draw random numbers, so that the answers depend on the seed alone.
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    # Whoever pipes questions in needs no help.
    if sys.stdin.isatty():
        print_line(HELP)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            break
        # A line is a question unless it begins with a slash.
        command, _, rest = line.partition(" ")
        if command == "/quit":
            break
        if command.startswith("/"):
            # Follow a command of the terminal; the conversation goes on after an error.
            argument = rest.strip()
            if command == "/restart":
                session.restart()
            elif command == "/open":
                try:
                    session.restart(argument)
                except (ValueError, OSError, ImportError) as error:
                    print_error(error)
            else:
                print_error(f"no command {command}; {HELP}")
        elif line:
            _answer(session, model, line)


def _answer(session: Any, model: str, question: str) -> None:
    pieces = session.stream(question)
    try:
        with model_errors(model, "cannot answer"):
            for piece in pieces:
                # A model's output must not control the terminal.
                typer.echo(printable(piece, keep="\n"), nl=False)
    except KeyboardInterrupt:
        # The session stops the answer and keeps its cache valid.
        pieces.close()
    except (ValueError, OSError) as error:
        print_error(error)
    typer.echo()
