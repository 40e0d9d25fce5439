"""The classes of the program and its commands: licenses are accepted, errors become one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hf_any3d.cli.errors import HAS_FILE_TYPE, print_error, usage_error
from hf_any3d.extensions import missing_package
from hf_any3d.hub.caches import folder_of_caches, is_of_caches
from hf_any3d.hub.licenses import license_option
from hf_any3d.utils.messages import one_line


def _accept(
    accept_license: Annotated[
        bool,
        typer.Option("--accept-license", help="Accept a non-commercial license; your choice is remembered."),
    ] = False,
) -> None:
    del accept_license  # read by ModelCommand


class ModelCommand(TyperCommand):
    """A command that opens models by name, with `--accept-license`, which counts for all that it opens."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        # typer makes options of functions alone.
        licensed = typer.Typer(add_completion=False)
        licensed.command()(_accept)
        self.params += typer.main.get_command(licensed).params

    def invoke(self, ctx: Any) -> Any:
        """Run the function of the command."""
        with license_option(ctx.params.pop("accept_license")):
            return super().invoke(ctx)


class CommandLine(TyperGroup):
    """The command `hf-any3d`: errors are one line on stderr, and `--debug` anywhere adds the traceback."""

    def main(self, args: Sequence[str] | None = None, standalone_mode: bool = True, **settings: Any) -> Any:
        """Run a command.

        Exit codes: 0; 1 after an error; 2 if arguments are wrong or some of several files could not be used; 130
        after Ctrl-C. The variable HF_ANY3D_TRACEBACK=1 prints tracebacks, too.
        """
        words = list(sys.argv[1:] if args is None else args)
        # Words after -- belong to a training program, even if they look like this option.
        end = words.index("--") if "--" in words else len(words)
        debug = "--debug" in words[:end]
        words = [word for word in words[:end] if word != "--debug"] + words[end:]
        HAS_FILE_TYPE.set(self._has_file_type(words))
        # A caller that wants no exit gets the errors themselves.
        if not standalone_mode:
            return super().main(args=words, standalone_mode=False, **settings)
        # Never in standalone mode, in which typer prints errors in its own form, and exits.
        try:
            self._check_is_installed(words)
            code = super().main(args=words, standalone_mode=False, **settings)
        except (typer.Exit, typer.Abort) as end_of_command:
            code = getattr(end_of_command, "exit_code", 1)
        except BrokenPipeError:  # of `hf-any3d … | head`
            # Python flushes stdout when it ends, which would fail once more.
            sys.stdout = open(os.devnull, "w")
            code = 1
        except Exception as error:
            if debug or os.environ.get("HF_ANY3D_TRACEBACK", "") not in ("", "0"):
                traceback.print_exc()
            if hasattr(error, "format_message"):  # of typer: wrong arguments
                where = getattr(getattr(error, "ctx", None), "command_path", "hf-any3d")
                # Of a group without a command, typer has printed the help.
                is_group = type(error).__name__ == "NoArgsIsHelpError"
                print_error(f"{'missing command' if is_group else usage_error(error)} ({where} --help)")
                code = 2
            else:
                # Errors of these types are meant for users; any other is a defect, whose type may help to find it.
                is_expected = isinstance(error, (ValueError, OSError, ImportError))
                text = f"{type(error).__name__}: {one_line(error)} (--debug prints the traceback)"
                if isinstance(error, OSError) and is_of_caches(error.filename):
                    caches = folder_of_caches()
                    hint = f"{caches} is the cache of models and data: set HF_HOME to a folder that can be written"
                    print_error(f"{one_line(error)}; {hint}")
                else:
                    print_error(error if is_expected else text)
                code = 1
        # Commands return None; numbers are the codes of exits.
        sys.exit(code if isinstance(code, int) else 0)

    def _check_is_installed(self, words: Sequence[str]) -> None:
        """Refuse a command of a package that is not installed."""
        for name in (words[0] if words else "", " ".join(words[:2])):
            package = missing_package(name)
            if package is not None:
                raise ValueError(f"hf-any3d {name} is a command of {package}")

    def _has_file_type(self, words: Sequence[str]) -> bool:
        """Return whether the command of a line has the option --file-type."""
        command: Any = self
        for word in words:
            command = getattr(command, "commands", {}).get(word.replace("_", "-"), command)
        return any(option.name == "file_type" for option in command.params)
