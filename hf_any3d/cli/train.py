"""`hf-any3d train`: train a classifier, segmentation model or detector on a folder, a file or a dataset."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_any3d.cli.caches import use_writable_cache
from hf_any3d.cli.command_line import ModelCommand
from hf_any3d.cli.errors import print_note
from hf_any3d.cli.inputs import LeftOutFiles
from hf_any3d.cli.libraries import load_libraries
from hf_any3d.cli.opening import found_model
from hf_any3d.cli.options import option, with_groups
from hf_any3d.cli.progress import hide_bars_of_datasets, status
from hf_any3d.cli.train_options import TrainOptions
from hf_any3d.hub.models import is_model, packaged_model
from hf_any3d.hub.names import skip_hub_if_offline
from hf_any3d.training.sources import Task, Way, find_source
from hf_any3d.utils.atomic_files import LOCK
from hf_any3d.utils.messages import listed, print_line, printable

if TYPE_CHECKING:
    from hf_any3d.training.program import TrainingTask


class TrainCommand(ModelCommand):
    """The command `train`, whose `--augment` takes several words, as that of the training programs does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the words behind `--augment`, none of which is DATA, as that comes first or `--dataset` is given."""
        if "--augment" in args and (not args[0].startswith("-") or "--dataset" in args):
            start = args.index("--augment") + 1
            end = start
            while end < len(args) and not args[end].startswith("-"):
                end += 1
            # One value, as options of typer do not take an open number of words.
            args = [*args[:start], " ".join(args[start:end]), *args[end:]]
        return super().parse_args(ctx, args)


# Task -> the command that runs a trained model, which is told at the end.
_COMMANDS = {
    Task.CLASSIFICATION: "predict",
    Task.SEGMENTATION: "segment",
    Task.DETECTION: "detect",
    Task.LAYOUTS: "detect",
}


def _print_all_help(context: typer.Context, task: Task | None) -> None:
    """Print the options of a task; without one those of classification, and of what else data may ask for unnamed."""
    _print_text(context.get_help())
    from hf_any3d.training.few_scans.request import FewScansArguments
    from hf_any3d.training.request_builder import TASK_CLASSES, learning_of_extensions

    shown = task or Task.CLASSIFICATION
    others = [f"--task {other.value} --help-all" for other in Task if other is not shown]
    print_line(f"Options of other tasks: {', '.join(others)}")
    print_line(f"All other options, for --task {shown.value}; they may also be written in a YAML file:")
    _print_arguments(*TASK_CLASSES[shown].argument_classes())
    if shown is Task.CLASSIFICATION:
        print_line("Options for --way features, in addition to the data options above:")
        _print_arguments(FewScansArguments)
    if task in (None, Task.SEGMENTATION):
        for module in learning_of_extensions():
            print_line(
                "Options for a few labeled files (DATA is one or several files, or a folder, with point classes):"
            )
            _print_arguments(*module.ARGUMENTS)


def _print_arguments(*argument_classes: type) -> None:
    from hf_any3d.training.requests import ArgumentsParser

    # Only for its help, without the line of usage; `read_words` reads the words themselves.
    parser = ArgumentsParser(argument_classes, add_help=False, usage="")  # pyright: ignore[reportArgumentType]
    _print_text(parser.format_help().partition("options:\n")[2])


def _print_text(text: str) -> None:
    for line in text.splitlines():
        print_line(line)


@with_groups
def train(
    *,
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA",
            help="A folder with one subfolder of files per class, a Parquet file or a folder of them, a dataset "
            "in the built-in catalog or on the Hub (owner/name), or a recipe (.yaml), yours or a bundled one. Also "
            "files with point or face classes, such as .laz, or a folder of them.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None, option("Dataset in the built-in catalog or on the Hub; DATA is then the folder of its files.")
    ] = None,
    task: Annotated[
        Task | None,
        option(
            "classification, segmentation, detection, or layouts (fine-tunes a SpatialLM model). By default inferred "
            "from the data: classification for one folder per class, segmentation for files with point or face "
            "classes."
        ),
    ] = None,
    way: Annotated[
        Way | None,
        option(
            "For labeled scans: features (a linear head on frozen features, in seconds), trained (a tokenizer, an "
            "adapter and a head on top of a frozen encoder) or both (averages the predictions of features and of a "
            "fine-tuned point encoder, in minutes); by default features for up to 400 scans, or trained if you pass "
            "training options. For labeled points: features (a small network on features of each point's "
            "neighborhood, the default) or trained (a network on the points themselves)."
        ),
    ] = None,
    options: TrainOptions,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model that the output directory holds, if it has one.")
    ] = False,
    all_options: Annotated[
        bool, typer.Option("--help-all", help="Show all options, including those of the trainer, and exit.")
    ] = False,
) -> None:
    """Train a model on your own scans or on a dataset, evaluate it, and write its model card.

    For up to 400 labeled scans, this fits a linear head on frozen features in seconds, offline, and evaluates it by
    cross-validation. With more scans, or with training options, it trains a point tokenizer, an adapter and a head on
    top of a frozen encoder; the saved model takes a few megabytes, and rerunning the command resumes. If files of a
    folder cannot be read, it trains on the rest and exits with code 2. You can also pass fields of TrainingArguments
    and advanced options, such as --peft lora, with - or _ in the name; --help-all lists them.
    """
    # Before DATA is missed, as help needs none.
    if all_options:
        _print_all_help(context, task)
        return
    # Words and options that this command does not know are arguments of the training program.
    words = [*(words or ()), *context.args]
    data = None
    if words and not words[0].startswith("-"):
        data = words.pop(0)
    if data is None and dataset is None:
        raise ValueError("DATA is missing; expected a folder, a Parquet file, a dataset's name, or a recipe")
    skip_hub_if_offline()
    use_writable_cache()
    source = find_source(data, dataset, task, words)
    output = options.output or (source.output if source.recipe is None else None)
    # What other options mean, and checkpoints to go on from, is known only once all is loaded.
    is_plain = not words and way is None and options == TrainOptions(output=options.output)
    if output is not None and is_plain and not any(output.glob("checkpoint-*")):
        _refuse_to_replace(output, overwrite=overwrite)
    # What names no model, or contradicts itself, is refused before torch is loaded.
    if source.files:
        source.check_way(way, options.earlier)
    command = _COMMANDS[source.task]
    # Named by its command, a packaged model leads back to that command.
    if options.earlier is not None and packaged_model(str(options.earlier)) is not None:
        command = str(options.earlier)
    options = options.with_models_found(way)
    if not source.files:
        source.check_way(way, options.earlier)
    load_libraries()
    hide_bars_of_datasets()
    # The arguments of trainings are classes on top of torch, so that they are read only now.
    from hf_any3d.training.few_scans.training import learn_scans
    from hf_any3d.training.program import TrainingTask
    from hf_any3d.training.request_builder import build_request, output_of
    from hf_any3d.training.requests import ExtensionRequest

    # The bars of a network that is trained tell more; features of few scans have none.
    with status("training"), _output_on_stderr() as left_out:
        request, rows = build_request(source, options.settings(), words, way, _config_of)
        folder = output_of(request)
        if not (isinstance(request, TrainingTask) and _goes_on(request, overwrite=overwrite)):
            _refuse_to_replace(Path(folder), overwrite=overwrite)
        if isinstance(request, ExtensionRequest):
            learned = request.learn(source.files)
        else:
            endings: set[str] = set()
            # Several files are always tiles, so that a network learns from one folder.
            for scans in source.files:
                endings |= {file.suffix.lower() for file in Path(scans).rglob("*")}
            if not endings.isdisjoint((".las", ".laz")):
                print_note(
                    "warning: --way trained uses all LAS codes as classes, including those that are not objects, "
                    "such as 0, 1 and 12; --way features ignores them"
                )
            learned = learn_scans(request, rows)
    if Path(folder).is_dir():
        from hf_any3d.evaluation.model_facts import model_facts
        from hf_any3d.evaluation.stored_facts import store_facts

        # While all is imported, so that the first `info` is fast. The model is saved; that its facts cannot be counted
        # is no error of the training.
        with contextlib.suppress(ValueError, OSError):
            store_facts(model_facts(folder), folder, Path(folder))
    for line in learned.lines:
        print_line(printable(line))
    print_line(f"{folder}: model, card and metrics.json; try: hf-any3d {command} FILE --model {folder}")
    left_out.finish()


def _config_of(name: str) -> dict[str, Any]:
    return found_model(name).config


def _refuse_to_replace(folder: Path, *, overwrite: bool) -> None:
    """Raise an error if a directory holds a whole model; without the mark of a run that was killed, it is whole."""
    if overwrite or not is_model(folder) or (folder / LOCK).exists():
        return
    found = found_model(str(folder))
    what = "a model" if found.task is None else found.task.kind
    if found.labels:
        what += f" of {listed(found.labels, 4)}"
    raise FileExistsError(
        f"{folder} holds {what}; add --overwrite to replace it, or give another directory as --output"
    )


def _goes_on(request: TrainingTask, *, overwrite: bool) -> bool:
    """Return whether a training goes on from a checkpoint in its directory, or starts again there on request."""
    from hf_any3d.training.checkpoints import checkpoint_to_resume

    training = request.training
    if overwrite:
        training.resume_from_checkpoint = training.resume_from_checkpoint or "false"
    asked = training.resume_from_checkpoint
    return str(asked).lower() == "false" or checkpoint_to_resume(training.output_dir, asked) is not None


@contextlib.contextmanager
def _output_on_stderr() -> Iterator[LeftOutFiles]:
    """Send progress and the trainer's output to stderr, so that stdout holds the result alone."""
    from hf_any3d.utils.atomic_files import release_claims

    try:
        with contextlib.redirect_stdout(sys.stderr), LeftOutFiles() as left_out:
            yield left_out
    finally:
        # The claim of the output folder ends with the training, also after an error or Ctrl-C.
        release_claims()
