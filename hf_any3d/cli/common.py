"""Options, errors in one line, names of models and progress, shared by the commands."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from typer.core import TyperCommand, TyperGroup

from hf_any3d.hub.licenses import license_option
from hf_any3d.hub.names import SILENT_HUB, check_path, offline_reason, similar_path
from hf_any3d.hub.published_table import PUBLISHED, SIZE_MARK, find_published, is_published
from hf_any3d.registry import FORMATS, MODEL_TYPES, TASKS, check_model_type, task_of_class
from hf_any3d.utils.messages import error_lines, model_errors, one_line, print_line

# Exit code of a command that could not use some of its files.
SOME_FAILED = 2
_DEBUG = "HF_ANY3D_TRACEBACK"
# Seconds until a bar or a message about progress appears.
PATIENCE = 2.0


def option(help: str, *names: str, **settings: Any) -> Any:
    """Make an option whose help has no default, since that is None or named in the text."""
    return typer.Option(*names, help=help, show_default=False, **settings)


ChatModel = Annotated[str, typer.Argument(help="Directory or hub name of a point cloud language model.")]
Device = Annotated[str | None, option("cpu, cuda, cuda:1, mps …; by default the fastest available.")]
Revision = Annotated[str | None, option("Branch, tag or commit of the model on the hub.")]
Template = Annotated[str | None, option("Chat template of the processor, such as demo; by default its own.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")]
BatchSize = Annotated[
    int | None,
    option("Clouds per batch; by default 8, or 1 if predictions depend on the other clouds.", min=1),
]
DataDir = Annotated[str | None, option("Directory with the files of a dataset of the catalog.")]


_license = typer.Typer(add_completion=False)


@_license.command()
def _accept(
    accept_license: Annotated[
        bool,
        typer.Option(
            "--accept-license",
            help="Accept a license of published weights that forbids commercial use; this is remembered.",
        ),
    ] = False,
) -> None:
    del accept_license  # read by ModelCommand


class ModelCommand(TyperCommand):
    """A command that opens models by name, with `--accept-license`, which counts for all that it opens."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        # typer makes options of functions alone.
        self.params += typer.main.get_command(_license).params

    def invoke(self, ctx: Any) -> Any:
        """Run the function of the command."""
        with license_option(ctx.params.pop("accept_license")):
            return super().invoke(ctx)


class CommandLine(TyperGroup):
    """The command `hf-any3d`: errors are one line on stderr, and `--debug` anywhere adds the traceback."""

    def main(self, args: Sequence[str] | None = None, standalone_mode: bool = True, **settings: Any) -> Any:
        """Run a command.

        Exit codes: 0; 1 after an error; 2 if arguments are wrong or some of several files could not be used; 130
        after Ctrl-C.
        """
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        debug = "--debug" in words[:end]
        # Words after -- belong to a training program, even if they look like this option.
        words = [word for word in words[:end] if word != "--debug"] + words[end:]
        if not standalone_mode:
            return super().main(args=words, standalone_mode=False, **settings)
        before = os.environ.get(_DEBUG)
        if debug:
            os.environ[_DEBUG] = "1"
        try:
            with one_line_errors():
                code = super().main(args=words, standalone_mode=False, **settings)
        except typer.Exit as end_of_command:
            code = end_of_command.exit_code
        finally:
            if debug:
                os.environ.pop(_DEBUG) if before is None else os.environ.update({_DEBUG: before})
        sys.exit(code if isinstance(code, int) else 0)


def json_object(option: str, text: str | None) -> dict[str, Any]:
    """Read the JSON object of an option, an empty one without a text.

    Raises:
        ValueError: The text is no JSON object.
    """
    try:
        value = {} if text is None else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{option} is {text!r}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f'{option} is {text!r}; expected a JSON object such as {{"name": 1}}')
    return value


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print errors in one line on stderr and exit; `--debug` or HF_ANY3D_TRACEBACK=1 puts the traceback before it."""
    try:
        yield
    except (typer.Exit, typer.Abort) as end:
        raise typer.Exit(getattr(end, "exit_code", 1)) from None
    except BrokenPipeError:  # of `hf-any3d … | head`
        # Python flushes stdout when it ends, which would fail once more.
        sys.stdout = open(os.devnull, "w")
        raise typer.Exit(1) from None
    except Exception as error:
        if os.environ.get(_DEBUG, "") not in ("", "0"):
            traceback.print_exc()
        context = getattr(error, "ctx", None)
        if hasattr(error, "format_message"):  # of typer: wrong arguments
            where = context.command_path if context is not None else "hf-any3d"
            # Of a group without a command, typer has printed the help.
            text = "Missing command" if type(error).__name__ == "NoArgsIsHelpError" else error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
            print_error(f"{text.rstrip('.')} ({where} --help)")
            raise typer.Exit(2) from None
        expected = isinstance(error, (ValueError, OSError, ImportError))
        print_error(error if expected else f"{type(error).__name__}: {one_line(error)} (--debug prints the traceback)")
        raise typer.Exit(1) from None


def print_error(error: Exception | str) -> None:
    """Print an error on stderr, and below it its notes, if it has any."""
    first, *notes = error_lines(error)
    for line in (f"error: {first}", *notes):
        print_line(line, is_error=True)


def print_note(text: object) -> None:
    """Print a remark on stderr, so that stdout has results alone."""
    print_line(text, is_error=True)


def load_libraries() -> None:
    """Load torch and transformers, register the models with them, and turn off their bars and remarks.

    Commands call this once they have checked what needs no models.
    """
    import huggingface_hub.utils
    import transformers

    from hf_any3d.integration.registration import register

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Adapters are stored with the name of their encoder, and opened by their own.
    warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path` was renamed")
    register()


def progress(total: int | None, unit: str, *, show: bool = True) -> Any:
    """Return a tqdm bar on stderr that appears after two seconds; in a log file it adds a line every ten seconds."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, unit=unit, delay=PATIENCE, mininterval=interval, disable=not show, leave=False)


@contextmanager
def status(text: str) -> Iterator[None]:
    """Print what is being done on stderr if it takes more than two seconds and someone is watching."""
    timer = threading.Timer(PATIENCE, print_note, [f"{text} …"])
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


_CONFIG = "config.json"


def find_model(name: str, revision: str | None = None) -> str:
    """Return the directory or hub name of a model, after checking what can be checked without the hub.

    What counts as a path is decided in `hf_any3d.hub.names`.

    Raises:
        ValueError: A file, or a directory without a model.
        FileNotFoundError: A name that looks like a path, and there is no such directory; suggests a similar one.
    """
    path = Path(name).expanduser()
    if is_published(name):
        find_published(name)  # refuses a size that there is not
        skip_hub_if_offline()
        return name
    if path.is_dir():
        # People often name the folder of a run whose model is one level deeper.
        if not any((path / file).is_file() for file in (_CONFIG, "adapter_config.json")):
            inner = sorted(file.parent for file in path.glob(f"*/{_CONFIG}"))
            hint = f"; did you mean {inner[0]}?" if inner else ""
            raise ValueError(f"{name}: no model in this directory, it has no {_CONFIG}{hint}")
        return str(path)
    if path.exists():
        raise ValueError(f"{name}: a file; expected the directory or hub name of a model")
    if path.suffix[1:].lower() in FORMATS:
        raise FileNotFoundError(f"no file {name}{similar_path(path)}; expected the directory or hub name of a model")
    check_path(name, revision, needs_owner=True)
    skip_hub_if_offline()
    return name


def read_model_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """Read the configuration of a model; of one on the hub, only this file is downloaded.

    A published checkpoint is fetched and converted, unless it was before.

    Raises:
        ValueError: The file is damaged.
        OSError: There is no such model, or the hub cannot be reached.
    """
    name = find_model(name, revision)
    file = Path(name) / _CONFIG
    if is_published(name):
        with status(f"fetching and converting {name}"):
            load_libraries()
            from hf_any3d.published import opened_directory

            file = opened_directory(name, revision) / _CONFIG
    elif not Path(name).is_dir():
        import huggingface_hub
        from huggingface_hub import errors

        try:
            with status(f"looking for {name} on the hub"):
                file = Path(huggingface_hub.hf_hub_download(name, _CONFIG, revision=revision))
        except errors.RevisionNotFoundError:
            raise FileNotFoundError(f"{name}: no revision {revision!r} on the hub") from None
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            raise FileNotFoundError(
                f"{name}: no such directory, and no such model on the hub (for a private one: hf auth login)"
            ) from None
        # Before EntryNotFoundError, from which it derives.
        except errors.LocalEntryNotFoundError:
            reason = offline_reason() or "the hub cannot be reached"
            raise OSError(f"{name}: no such directory, and {reason}") from None
        except errors.EntryNotFoundError:
            raise FileNotFoundError(f"{name}: this repository has no {_CONFIG}, so it is not a model") from None
    if not file.is_file():  # an adapter alone
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    return config if isinstance(config, dict) else {}


def skip_hub_if_offline() -> None:
    """Use the cache alone if the hub's address is unknown, rather than try again for a minute."""
    # Once imported, the library has read the variable. Behind a proxy, names are resolved elsewhere.
    is_decided = "huggingface_hub" in sys.modules or "HF_HUB_OFFLINE" in os.environ
    if is_decided or any(name.lower().endswith("_proxy") for name in os.environ):
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        os.environ |= {"HF_HUB_OFFLINE": "1", SILENT_HUB: "1"}


def kind_of_model(config: dict[str, Any]) -> tuple[str, str] | None:
    """Return the kind of a model and the command for it, or None if its config names no model of this package."""
    if config.get("model_type") not in MODEL_TYPES:
        return None
    task = task_of_class(str((config.get("architectures") or [""])[0]))
    return None if task is None else (TASKS[task].kind, TASKS[task].command)


def check_model(name: str, *commands: str, revision: str | None = None) -> str:
    """Find a model and check that it is for one of these commands, before anything large is imported or downloaded.

    Returns:
        Its directory or hub name.

    Raises:
        ValueError: It is for another command, which the error names.
        OSError: It does not exist.
    """
    name = find_model(name, revision)
    config = read_model_config(name, revision)
    kind = kind_of_model(config)
    if kind is not None and kind[1] not in commands:
        raise ValueError(f"{name}: this is {kind[0]}: hf-any3d {kind[1]}")
    # Models of transformers, and of newer versions of this package, are named in the error.
    if kind is None and config.get("model_type") is not None:
        check_model_type(name, config["model_type"])
    return name


def published_models(command: str) -> Iterator[str]:
    """Yield the lines of a table of published models that a command opens by name, with their licenses."""
    # Encoders with texts have features too.
    commands = (command, "zero-shot") if command == "features" else (command,)
    rows = {}
    for name, published in PUBLISHED.items():
        classes = {size: file.model_class or published.system.model_class for size, file in published.files.items()}
        tasks = {size: task_of_class(model_class) for size, model_class in classes.items()}
        sizes = [size for size, task in tasks.items() if task is not None and TASKS[task].command in commands]
        if sizes:
            label = name if sizes[0] is None else f"{name}{SIZE_MARK}{sizes[0]}"
            terms = f"{published.system.weights_license}{' *' if published.system.non_commercial else ''}"
            further = ", ".join(str(size) for size in sizes[1:4]) + (", …" if len(sizes) > 4 else "")
            rows[label] = terms + (f"; also {further}" if further else "")
    if not rows:
        yield "none is published; train one, or convert the authors' files: hf-any3d convert --help"
        return
    yield "published ones (* not for commercial use, which --accept-license accepts once):"
    width = max(map(len, rows))
    for label, text in rows.items():
        yield f"{label:<{width}}  {text}"


def open_pipeline(task: str, model: str, device: str | None) -> Any:
    """Open a directory or hub repository as a pipeline, on the fastest device unless one is named."""
    with status(f"loading {model}"):
        load_libraries()
        from hf_any3d.many_files import work

        return work.open_pipeline(task, model, device)


def open_chat(model: str, device: str | None, template: str | None) -> Any:
    """Open a pipeline that answers questions about point clouds.

    Raises:
        ValueError: Its processor has no template of this name.
    """
    pipe = open_pipeline("point-cloud-text-to-text", check_model(model, "chat"), device)
    with model_errors(model):  # a wrong template name fails here, not at the first question
        pipe.processor.apply_chat_template([{"role": "user", "content": ""}], template)
    return pipe
