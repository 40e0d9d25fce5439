"""Options, errors in one line, names of models and progress, shared by the commands."""

from __future__ import annotations

import inspect
import json
import os
import re
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, is_dataclass
from enum import StrEnum
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from hf_any3d.extensions import missing_package
from hf_any3d.hub.caches import folder_of_caches, is_of_caches, replace_unwritable_cache
from hf_any3d.hub.licenses import license_option
from hf_any3d.hub.models import CONFIG, download_config, find_model
from hf_any3d.hub.published_table import PUBLISHED, SIZE_MARK, is_published, published_for
from hf_any3d.registry import MODEL_TYPES, TASKS, check_model_type, task_of_class
from hf_any3d.tasks.chat.about import TASK as CHAT_TASK
from hf_any3d.utils.atomic_files import read_json_object
from hf_any3d.utils.devices import check_device
from hf_any3d.utils.messages import error_lines, model_errors, one_line, print_line
from hf_any3d.utils.progress import progress_bar

# Exit code of a command that could not use some of its files.
SOME_FAILED = 2
CHAT = CHAT_TASK.name
# What typer says about a wrong command line -> what is said here.
_USAGE = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"Value error, ", ""),
        (r"(?<=: )Input should be greater than or equal to ", "expected at least "),
        (r"(?<=: )Input should be less than or equal to ", "expected at most "),
        (r"(?<=: )Input should be greater than ", "expected more than "),
        (r"(?<=: )Input should be less than ", "expected less than "),
        (r"(?<=: )Input should be a valid (integer|number|boolean)\b.*", r"expected a \1"),
        (r"expected a integer$", "expected a whole number"),
        (r"^Invalid value for '([-\w]+)'", r"invalid value for \1"),
        (r"^Invalid value\b", "invalid value"),
        (r"^No such command '(.*?)'", r"no such command \1"),
        (r"^No such option: (\S+)", r"no such option \1"),
        (r"^Missing (argument|option) '(.*?)'", r"missing \1 \2"),
        (r"^Option '(.*?)' requires an argument", r"\1 needs a value"),
        (r"^Option '(.*?)' does not take a value", r"\1 takes no value"),
        (r"^Got unexpected extra argument(?:\(s\)|s)? \((.*)\)", r"unexpected arguments: \1"),
    )
)
# What it suggests, and where names of choices are quoted.
_SUGGESTED = re.compile(r"(?:\.? Did you mean:? (.+?)\?| \((?:Possible options|Did you mean):? (.+?)\??\))$")
_CHOICES = re.compile(r"(?<=is not one of ).+")
# How errors of readers name limits: first in Python.
_OF_LIMITS = re.compile(r"\(pass limits=\S+ or (set [^)]*)\)")
# Whether the command that runs has the option; the others read what the ending of a name says.
_HAS_FILE_TYPE: ContextVar[bool] = ContextVar("has_file_type", default=True)
# Seconds until a bar or a message about progress appears.
PATIENCE = 2.0


def option(help: str, *names: str, **arguments: Any) -> Any:
    """Make an option whose help has no default, since that is None or named in the text."""
    return typer.Option(*names, help=help, show_default=False, **arguments)


def output_option(help: str, *names: str, **arguments: Any) -> Any:
    """Make an option of a file or folder that is written: `checking_outputs` finds it by `writable`."""
    return option(help, *names, writable=True, **arguments)


Model = Annotated[
    str | None,
    option("Directory or Hub name of the model; a first argument that is a model is taken as this option."),
]
Classifier = Annotated[str | None, option("Directory or Hub name of a classifier; by default the bundled one.")]
Embedder = Annotated[
    str | None, option("Directory or Hub name of a model that returns features; by default the bundled encoder.")
]
Device = Annotated[str | None, option("Device: cpu, cuda, cuda:1, mps, …; by default the fastest one available.")]
Revision = Annotated[str | None, option("Branch, tag or commit of the model on the Hub.")]
Template = Annotated[
    str | None, option("Name of a chat template of the processor, such as demo; by default its default template.")
]
AllowedHost = Annotated[
    list[str] | None,
    option(
        "Hostname to accept besides localhost, such as example.org behind a proxy; * accepts any. Can be repeated."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")]
BatchSize = Annotated[
    int | None,
    option(
        "Point clouds per batch; by default 8, or 1 for models whose prediction depends on the other clouds in the "
        "batch.",
        min=1,
    ),
]
DataDir = Annotated[str | None, option("Directory with the files of a catalog dataset.")]


class LengthUnit(StrEnum):
    """Units that can be given for files without one."""

    METERS = "meters"
    FEET = "feet"
    US_FEET = "us-feet"


class Axis(StrEnum):
    """Axes of coordinates."""

    X = "x"
    Y = "y"
    Z = "z"


class Direction(StrEnum):
    """Directions that may point up."""

    X = "x"
    Y = "y"
    Z = "z"
    MINUS_X = "-x"
    MINUS_Y = "-y"
    MINUS_Z = "-z"


UnitOfFiles = Annotated[
    LengthUnit | None,
    option(
        "Unit of files that do not state one: meters, feet (international) or us-feet (US survey feet); by default "
        "meters.",
        "--unit",
    ),
]
FileType = Annotated[
    str | None,
    option(
        "Format of all files and of standard input, such as kitti; by default taken from the extension or the content."
    ),
]


LabelField = Annotated[
    str | None,
    option(
        "Attribute with the label of each point (LAS dimension, PLY property, PCD field or array name), or a "
        "column number, counted from 1, in text files without a header; by default a common name such as label."
    ),
]


@dataclass(frozen=True)
class FileOptions:
    """Options of the commands that print a row for each file."""

    file_type: FileType = None
    as_json: AsJson = False
    as_csv: AsCsv = False


def _accept(
    accept_license: Annotated[
        bool,
        typer.Option("--accept-license", help="Accept a non-commercial license; your choice is remembered."),
    ] = False,
) -> None:
    del accept_license  # read by ModelCommand


def with_groups(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of its arguments that are dataclasses."""
    # Resolved, since annotations are texts in modules that postpone their evaluation.
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {}
    for name, hint in hints.items():
        # A dataclass that is made when the program runs is behind the type that checkers see.
        for kind in (hint, *getattr(hint, "__metadata__", ())):
            if isinstance(kind, type) and is_dataclass(kind):
                groups[name] = kind
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        # A group stands for the options of its fields, at its own place among the others.
        group = groups.get(parameter.name)
        if group is not None:
            types = get_type_hints(group, include_extras=True)
            options = inspect.signature(group).parameters.values()
            parameters += [option.replace(annotation=types[option.name]) for option in options]
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))

    @wraps(function)
    def command(**values: Any) -> None:
        # typer gives a value for each field, of which the function expects the group.
        for name, group in groups.items():
            fields = {field: values.pop(field) for field in inspect.signature(group).parameters}
            values[name] = group(**fields)
        function(**values)

    # By keyword, since options without a default may follow others.
    parameters = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


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
        _HAS_FILE_TYPE.set(self._has_file_type(words))
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


def usage_error(error: Any) -> str:
    """Return what is wrong with a command line, by an error of typer."""
    if getattr(error, "option_name", None) == "--version":
        return "no such option --version; for the version of all commands, use hf-any3d --version"
    text = error.format_message().strip().rstrip(".")
    suggested = _SUGGESTED.search(text)
    if suggested is not None:
        text = text[: suggested.start()]
    for pattern, said in _USAGE:
        text = pattern.sub(said, text)
    text = _CHOICES.sub(lambda choices: choices[0].replace("'", ""), text)
    if suggested is None:
        return text
    *names, last = (suggested[1] or suggested[2]).replace("'", "").split(", ")
    before = f"{', '.join(names)} or " if names else ""
    return f"{text}; did you mean {before}{last}?"


def json_object(option: str, text: str | None) -> dict[str, Any]:
    """Read the JSON object of an option, an empty one without a text."""
    value = None
    # No JSON at all is the same mistake as JSON that is no object.
    with suppress(ValueError):
        value = json.loads("{}" if text is None else text)
    if not isinstance(value, dict):
        raise ValueError(f'{option} is {text!r}; expected a JSON object such as {{"name": 1}}')
    return value


def need_packages(extra: str, *packages: str) -> None:
    """Raise an ImportError that names the extra of the package which installs what is missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        text = f"{' and '.join(missing)} is not installed: pip install 'hf-any3d[{extra}]'"
        raise ImportError(text if len(missing) == 1 else text.replace(" is not ", " are not "))


def in_options(text: str) -> str:
    """Return the text of an error or warning with options of commands in the place of arguments of Python."""
    text = _OF_LIMITS.sub(r"(set \1)", text)
    text = text.replace("label_field chooses", "--label-field chooses").replace("(label_field)", "(--label-field)")
    if not _HAS_FILE_TYPE.get():
        text = re.sub(r"; with file_type also [\w, ]+", "", text)
        text = re.sub(r'\bpass file_type="(\w+)"', r"end its name with .\1", text)
    text = text.replace("; with file_type also ", "; with --file-type also ")
    return re.sub(r'\bfile_type="(\w+)"', r"--file-type \1", text)


def print_error(error: Exception | str) -> None:
    """Print an error on stderr, and below it its notes, if it has any."""
    first, *notes = error_lines(error)
    for line in (f"error: {in_options(first)}", *notes):
        print_line(line, is_error=True)


def print_note(text: object) -> None:
    """Print a remark on stderr, so that stdout has results alone."""
    print_line(in_options(str(text)), is_error=True)


def need_libraries() -> None:
    """Raise an ImportError without the packages that a model alone opens without, see docs/install.md."""
    for name in ("peft", "scipy"):
        package = None
        with suppress(ImportError):
            package = find_spec(name)
        if package is None:
            raise ImportError(f"this command needs {name}: pip install hf-any3d, with all that it requires")


def load_libraries() -> None:
    """Load torch and transformers, register the models with them, and turn off their bars and remarks.

    Commands call this once they have checked what needs no models.
    """
    need_libraries()
    import huggingface_hub.utils
    import transformers

    from hf_any3d.integration.registration import register

    # Remarks of libraries would stand between the lines of the command.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Adapters are stored with the name of their encoder, and opened by their own.
    warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path` was renamed")
    register()


def use_writable_cache() -> None:
    """Prepare data in a temporary folder if the cache cannot be written, and name the variable to set."""
    caches = replace_unwritable_cache()
    if caches is not None:
        print_note(
            f"note: the cache {caches} cannot be written, so data are prepared for this command alone; set HF_HOME to "
            "a folder that can"
        )


def hide_bars_of_datasets() -> None:
    """Leave out the bars of datasets in a log file, where each step would be a line."""
    if not sys.stderr.isatty():
        import datasets

        datasets.disable_progress_bars()


def progress(total: int | None, unit: str, *, show: bool = True) -> Any:
    """Return a bar that appears after two seconds."""
    return progress_bar(hidden=not show, total=total, unit=unit, delay=PATIENCE, leave=False)


@contextmanager
def status(text: str) -> Iterator[None]:
    """Print what is being done on stderr if it takes more than two seconds and someone is watching."""
    timer = threading.Timer(PATIENCE, print_note, [f"{text} …"])
    # A program that ends meanwhile does not wait for it.
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def opened_folder(name: str, revision: str | None = None) -> Path | None:
    """Return the directory of a model, of a published checkpoint the converted one; None for one on the hub."""
    if not is_published(name):
        return Path(name) if Path(name).is_dir() else None
    with status(f"fetching and converting {name}"):
        load_libraries()
        from hf_any3d.published import opened_directory

        return opened_directory(name, revision)


def read_model_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """Read the configuration of a model, empty for an adapter alone; from the hub, only this file is downloaded."""
    name = find_model(name, revision)
    folder = opened_folder(name, revision)
    if folder is not None:
        file = folder / CONFIG
        if not file.is_file():
            return {}
    else:
        with status(f"looking for {name} on the Hub"):
            file = download_config(name, revision)
    return read_json_object(file)


def architecture_of(config: dict[str, Any]) -> str:
    """Return the name of the class of a model, "" if its config names none."""
    return str((config.get("architectures") or [""])[0])


def kind_of_model(config: dict[str, Any]) -> tuple[str, str] | None:
    """Return the kind of a model and the command for it, or None if its config names no model of this package."""
    if config.get("model_type") not in MODEL_TYPES:
        return None
    task = task_of_class(architecture_of(config))
    if task is None:
        return None
    return TASKS[task].kind, TASKS[task].command


def check_model(name: str, *commands: str, revision: str | None = None) -> str:
    """Return the directory or hub name of a model that is for one of these commands, before anything large is loaded.

    The error about another one names its command.
    """
    name = find_model(name, revision)
    config = read_model_config(name, revision)
    kind = kind_of_model(config)
    if kind is not None and kind[1] not in commands:
        step = f"use hf-any3d {kind[1]}"
        if commands[0] == "zero-shot":
            step = f"--labels needs a zero-shot model; without --labels, {step}"
        raise ValueError(f"{name} is {kind[0]}; {step}")
    # Models of transformers, and of newer versions of this package, are named in the error.
    if kind is None and config.get("model_type") is not None:
        check_model_type(name, config["model_type"])
    return name


def packaged_classifier() -> str:
    """Return the directory of the classifier that comes with the package, without the imports of its pipeline."""
    return str(Path(__file__).parents[1] / "default_model")


# What published models are for, by words of their names: the dataset that they were trained on, or the program.
_SUBJECTS = {
    "shapenetpart": "parts of CAD models",
    "s3dis": "office rooms",
    "scannet": "indoor rooms",
    "sunrgbd": "rooms from one side",
    "spatiallm": "indoor rooms",
    "patchalign3d": "parts that you name",
    "find3d": "parts that you name",
    "openshape": "classes that you name",
    "uni3d": "classes that you name",
}


def published_models(command: str) -> Iterator[str]:
    """Yield the lines of a table of the published models that a command opens: name, purpose and license."""
    rows = {}
    variants = {}
    for name, sizes in published_for([command]).items():
        system = PUBLISHED[name].system
        # The first size is part of the name, and a few more are listed below it.
        label = name
        if sizes[0] is not None:
            label += f"{SIZE_MARK}{sizes[0]}"
        text = str(system.weights_license)
        if system.non_commercial:
            text += " *"
        subject = next((subject for word, subject in _SUBJECTS.items() if word in label.lower()), "")
        rows[label] = subject, text
        if len(sizes) > 1:
            variants[label] = ", ".join(map(str, sizes[:4])) + (", …" if len(sizes) > 4 else "")
    if not rows:
        yield "none is published; train one, or convert the authors' files: hf-any3d convert --help"
        return
    has_marks = any(text.endswith("*") for _, text in rows.values())
    yield f"published models{' (* non-commercial license; --accept-license accepts it once and for all)' * has_marks}:"
    width = max(map(len, rows))
    subject_width = max(len(subject) for subject, _ in rows.values())
    for label, (subject, text) in rows.items():
        yield f"{label:<{width}}  {subject:<{subject_width}}  {text}"
        if label in variants:
            yield f"  variants: {variants[label]}"


def open_pipeline(task: str, model: str, device: str | None) -> Any:
    """Open a directory or hub repository as a pipeline, on the fastest device unless one is named.

    It may be one of `hf_any3d.tasks.direct`, which is open in half the time and whose model has no more than answers.
    """
    with status(f"loading {model}"):
        need_libraries()
        check_device(device)
        from hf_any3d.tasks.direct import open_direct

        pipe = open_direct(task, model, device)
    if pipe is None:
        pipe = open_with_transformers(task, model, device)
    return pipe


def open_with_transformers(task: str, model: str, device: str | None, template: str | None = None) -> Any:
    """Open a directory or hub repository as a pipeline of transformers."""
    with status(f"loading {model}"):
        load_libraries()
        from hf_any3d.integration import opening

        pipe = opening.open_pipeline(task, model, device)
    if task == CHAT:
        with model_errors(model):  # a wrong template name fails here, not at the first question
            pipe.processor.apply_chat_template([{"role": "user", "content": ""}], template)
    return pipe


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 stands for a free one."""
    try:
        # Only addresses of IPv6 have colons.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise OSError(f"--host {host} --port {port}: {error.strerror or error}; expected a free port") from error


def open_any_model(
    model: str, device: str | None, template: str | None, tasks: Sequence[str] = (), command: str | None = None
) -> tuple[str, Any]:
    """Open a model of any kind, or of some tasks, and say what was loaded; return its task and pipeline.

    With `command` it is opened for the task of this command, which takes such models, too.
    """
    read_model_config(model)  # fetches and converts a published checkpoint, or asks for its license
    load_libraries()
    from hf_any3d.integration.registration import task_of

    with model_errors(model):
        task = task_of(model)
    if command is not None:
        own = TASKS[task].command
        able = {}
        for name, other in TASKS.items():
            if own in (other.command, *other.also):
                able[other.command] = name
        if command not in able:
            raise ValueError(f"{model}: --task {command}: such a model does {', '.join(able)}")
        task = able[command]
    if tasks and task not in tasks:
        raise ValueError(f"{model}: models for {task} cannot be served; expected one of {', '.join(tasks)}")
    if task != CHAT and template is not None:
        raise ValueError(f"--template {template}: {model} is not a chat model")
    pipe = open_with_transformers(task, model, device, template)
    size = sum(parameter.numel() for parameter in pipe.model.parameters())
    print_line(f"loaded {size:,} weights on {pipe.device} ({pipe.model.dtype})")
    return task, pipe
