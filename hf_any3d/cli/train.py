"""`hf-any3d train`: train a classifier, segmentation model or detector on a folder, a file or a dataset."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import (
    Axis,
    ModelCommand,
    find_model,
    hide_bars_of_datasets,
    load_libraries,
    option,
    print_note,
    read_model_config,
    skip_hub_if_offline,
    use_writable_cache,
)
from hf_any3d.cli.data import find_dataset
from hf_any3d.cli.inputs import LeftOutFiles
from hf_any3d.hub.published_table import is_published
from hf_any3d.registry import (
    DATASETS,
    FORMATS,
    LABELED_CLOUDS,
    LABELED_POINTS,
    LABELED_WITH_BOXES,
    MODEL_TYPES,
)
from hf_any3d.utils.messages import print_line, printable

_RECIPES = (".yaml", ".yml", ".json")
# Argument -> option of this command.
SHORT_NAMES = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch-size",
    "learning_rate": "learning-rate",
}
_LONG_AND_SHORT = SHORT_NAMES | {"num_points": "points", "output_dir": "output", "from_model": "from"}
_RECIPES_FOLDER = Path(__file__).parents[1] / "recipes"


class Way(StrEnum):
    """Way of learning of a classifier."""

    FEATURES = "features"
    TRAINED = "trained"
    BOTH = "both"


class Task(StrEnum):
    """Target of labels: clouds, points, boxes or layouts."""

    CLASSIFICATION = "classification"
    SEGMENTATION = "segmentation"
    DETECTION = "detection"
    LAYOUTS = "layouts"


class TrainCommand(ModelCommand):
    """The command `train`, whose `--augment` takes several words, as that of the training programs does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the words behind `--augment`, none of which is DATA, as that comes first or `--dataset` is given."""
        if "--augment" in args and (not args[0].startswith("-") or "--dataset" in args):
            start = args.index("--augment") + 1
            end = next((place for place in range(start, len(args)) if args[place].startswith("-")), len(args))
            # One value, as options of typer do not take an open number of words.
            args = [*args[:start], " ".join(args[start:end]), *args[end:]]
        return super().parse_args(ctx, args)


# What the labels of data belong to -> the task that learns from them.
_TASKS = {LABELED_POINTS: Task.SEGMENTATION, LABELED_WITH_BOXES: Task.DETECTION}
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
    from hf_any3d.cli.train_requests import TASK_CLASSES
    from hf_any3d.training.few_scans.request import FewScansArguments
    from hf_any3d.training.tiles.training import TilesArguments

    shown = task or Task.CLASSIFICATION
    others = [f"--task {other.value} --help-all" for other in Task if other is not shown]
    print_line(f"Options of other tasks: {', '.join(others)}")
    print_line(f"All other options, for --task {shown.value}; they may also be written in a YAML file:")
    _print_arguments(*TASK_CLASSES[shown].argument_classes())
    if shown is Task.CLASSIFICATION:
        print_line("Options of --way features, besides those of the data above:")
        _print_arguments(FewScansArguments)
    if task in (None, Task.SEGMENTATION):
        print_line("Options of a few labeled files (DATA is a folder of files whose points have classes, or several):")
        _print_arguments(TilesArguments)


def _print_arguments(*argument_classes: type) -> None:
    from hf_any3d.training.arguments import ArgumentsParser

    # Only for its help, without the line of usage; `read_words` reads the words themselves.
    parser = ArgumentsParser(argument_classes, add_help=False, usage="")  # pyright: ignore[reportArgumentType]
    _print_text(parser.format_help().partition("options:\n")[2])


def _print_text(text: str) -> None:
    for line in text.splitlines():
        print_line(line)


@dataclass(frozen=True)
class _Options:
    """Options of the command that are arguments of trainings under another name; None for those that are not given."""

    output: Path | None
    encoder: str | None
    earlier: Path | None
    epochs: float | None
    batch_size: int | None
    learning_rate: float | None
    points: int | None
    augment: str | None
    up_axis: Axis | None
    seed: int | None

    def of_tiles(self, first_file: str) -> dict[str, Any]:
        """Return the arguments for labeled files of which this is the first."""
        # There is always an output folder, since no recipe can name one here.
        arguments = {
            "output_dir": str(self.output or Path("outputs") / Path(first_file).stem),
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "points": self.points,
            "augment": self.augment,
            "encoder": self.encoder,
            "seed": self.seed,
            "up_axis": None if self.up_axis is None else self.up_axis.value,
        }
        # An argument that is left out keeps the default of its class.
        return {name: value for name, value in arguments.items() if value is not None}

    def of_training(self, way: Way | None, default_folder: Path | None) -> dict[str, Any]:
        """Return the arguments of a training, or of learning few scans; a recipe may have an output folder."""
        output = self.output or default_folder
        arguments = {
            "output_dir": None if output is None else str(output),
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "num_points": self.points,
            "seed": self.seed,
            "up_axis": None if self.up_axis is None else self.up_axis.value,
            "from_model": None if self.earlier is None else find_model(str(self.earlier)),
            # Commas also separate the settings of a transform, such as scale:low=0.5,high=2.
            "augment": None if self.augment is None else re.split(r"\s+|,(?!\w+=)", self.augment.strip()),
        }
        # An argument that is left out keeps the value of the recipe, or the default of its class.
        arguments = {name: value for name, value in arguments.items() if value is not None}
        # Frozen features come from a point encoder of any type; a training has an argument for each kind of encoder.
        if self.encoder and way is Way.FEATURES:
            return arguments | {"encoder": find_model(self.encoder)}
        return arguments | _encoder_arguments(self.encoder)


@dataclass(frozen=True)
class _Source:
    """Data to train on: arguments that name it or a recipe that does, and the task that its labels are for."""

    arguments: dict[str, Any]
    recipe: Path | None
    task: Task


def train(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA",
            help="A folder with a folder of files for each class, a Parquet file or folder of them, the name of a "
            "dataset in the catalog or on the hub (owner/name), or a recipe (.yaml), your own or one of the package. "
            "Also files whose points or faces have classes, such as .laz, or a folder of them.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None, option("Name of the dataset in the catalog or on the hub; DATA is then the folder of its files.")
    ] = None,
    encoder: Annotated[
        str | None,
        option(
            "Frozen text, vision or audio encoder, or a pretrained point transformer: directory or hub name; by "
            "default sentence-transformers/all-MiniLM-L6-v2, from the hub, its cache, or the package that "
            "hf-any3d[offline] installs. With --way features, a point encoder; by default the packaged one."
        ),
    ] = None,
    task: Annotated[
        Task | None,
        option(
            "classification of clouds, segmentation of points, detection, or layouts, which fine-tunes a SpatialLM; "
            "by default as the data require: folders named after classes are for classification, files whose points "
            "or faces have classes for segmentation."
        ),
    ] = None,
    way: Annotated[
        Way | None,
        option(
            "features: frozen features with a linear head, in seconds; trained: a model around a frozen encoder; "
            "both: the mean answer of the first and of the trained packaged encoder, or of the one that --encoder "
            "names, in minutes. By default features for up to some hundred scans; options of training mean trained. "
            "Of labeled points, features: features of surroundings with a small network; trained: a network that sees "
            "the points, of a folder of files."
        ),
    ] = None,
    earlier: Annotated[
        Path | None,
        option(
            "Directory of a model of few scans to add the scans of DATA to, reusing the features of its own; not for "
            "labels of points, which are learned anew from all files.",
            "--from",
        ),
    ] = None,
    output: Annotated[
        Path | None, option("Directory for model, card and metrics; by default outputs/ and the name of the data.")
    ] = None,
    epochs: Annotated[float | None, option("Passes over the data; by default 60, for segmentation 20.")] = None,
    batch_size: Annotated[int | None, option("Clouds per step; by default 16, or all of fewer.", min=1)] = None,
    learning_rate: Annotated[
        float | None, option("Largest learning rate; by default 0.004, for segmentation 0.001.")
    ] = None,
    points: Annotated[
        int | None,
        option(
            "Points per cloud; by default 1,024. Of a few labeled tiles, points that are learned of each; by default "
            "12,000.",
            min=1,
        ),
    ] = None,
    augment: Annotated[
        str | None, option("Transforms of training clouds, such as 'scale rotate jitter'; by default none.")
    ] = None,
    up_axis: Annotated[
        Axis | None, option("Axis that points up in the files: x, y or z; by default that of the data, else y.")
    ] = None,
    seed: Annotated[int | None, option("Random seed; by default 42.", min=0)] = None,
    all_options: Annotated[bool, typer.Option("--help-all", help="Show all other options too and exit.")] = False,
) -> None:
    """Train a model on your own scans or on a dataset, evaluate it, and write its card.

    Up to some hundred labeled scans get frozen features and a linear head in seconds, without a network, judged by
    cross-validation. With more scans, or with options of training, an adapter, a tokenizer and a head are trained
    around a frozen encoder, some megabytes; the same command continues an interrupted run. Files of a folder that
    cannot be read are left out, and the exit code is then 2. Any other option may follow, such as
    --peft lora, spelled with - or _: --help-all lists them.
    """
    # Before DATA is missed, as help needs none.
    if all_options:
        _print_all_help(context, task)
        return
    # Words and options that this command does not know are arguments of the training program.
    words = [*(words or ()), *context.args]
    data = words.pop(0) if words and not words[0].startswith("-") else None
    if data is None and dataset is None:
        raise ValueError("DATA is missing; expected a folder, a Parquet file, a dataset's name, or a recipe")
    skip_hub_if_offline()
    use_writable_cache()
    options = _Options(
        output=output,
        encoder=encoder,
        earlier=earlier,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        points=points,
        augment=augment,
        up_axis=up_axis,
        seed=seed,
    )
    # Files whose points have classes need no name of a dataset, and their own way may learn from them.
    labeled_files = [] if dataset is not None else _take_labeled_files(data, words, task)
    if labeled_files and _learns_tiles(labeled_files, options, words, way):
        return
    if _has_las(labeled_files):
        print_note(
            "warning: a network is trained on all codes of LAS as they are, also those that name no object, such as "
            "0, 1 and 12; --way features leaves them out"
        )
    source = _find_source(data, dataset, task)
    # A recipe may name its folder itself.
    default_folder = None if source.recipe else Path("outputs") / Path(data or dataset or "").stem
    arguments = source.arguments | options.of_training(way, default_folder)
    # What contradicts itself is refused before torch is loaded.
    _check_way(way, source, earlier)
    load_libraries()
    hide_bars_of_datasets()
    # The arguments of trainings are classes on top of torch, so that they are read only now.
    from hf_any3d.cli.train_requests import parse_words

    named = parse_words(source.task, words)
    # Without the default folder, these are the options that were given.
    if twice := sorted(named.keys() & options.of_training(way, None).keys()):
        short = _LONG_AND_SHORT.get(twice[0], twice[0].replace("_", "-"))
        raise ValueError(f"--{short} and --{twice[0]} are one option; expected one of them")
    arguments |= named
    with _output_on_stderr() as left_out:
        folder, lines = _train(source, arguments, way)
    _store_facts(folder)
    _print_result(folder, lines, _COMMANDS[source.task])
    left_out.finish()


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


def _print_result(folder: str, lines: list[str], command: str) -> None:
    for line in lines:
        print_line(printable(line))
    print_line(f"{folder}: model, card and metrics.json; try: hf-any3d {command} FILE --model {folder}")


def _store_facts(folder: str) -> None:
    """Store the facts that `info` prints of a model while all is imported, so that the first `info` is fast."""
    if Path(folder).is_dir():
        from hf_any3d.cli.model import store_facts
        from hf_any3d.cli.model_facts import model_facts

        # The model is trained and saved; that its facts cannot be counted is no error of the training.
        with contextlib.suppress(ValueError, OSError):
            store_facts(folder, None, model_facts(folder))


def _take_labeled_files(data: str | None, words: list[str], task: Task | None) -> list[str]:
    """Return files and folders of labeled points, which are taken off the words; none for other data."""
    if data is None or task not in (None, Task.SEGMENTATION):
        return []
    # A file of points can only have labels of points; the labels of a folder may be those of clouds.
    path = Path(data)
    is_file = path.is_file() and path.suffix[1:].lower() in FORMATS
    if not is_file and not (path.is_dir() and _has_labeled_points(data, task)):
        return []
    files = [data]
    # As with other commands, several files may stand before the first option.
    while words and not words[0].startswith("-"):
        files.append(words.pop(0))
    return files


def _has_labeled_points(folder: str, task: Task | None) -> bool:
    """Return whether a folder is one of files whose points have labels, as `--task` says or else the files."""
    found = find_dataset(folder)
    if found.name != "folder":
        return False
    return task is Task.SEGMENTATION or found.labels() == LABELED_POINTS


def _has_las(files: list[str]) -> bool:
    """Return whether files, or those of folders, are LAS."""
    inside = (file for path in map(Path, files) for file in ([path] if path.is_file() else path.rglob("*")))
    return any(file.suffix.lower() in (".las", ".laz") for file in inside)


def _learns_tiles(files: list[str], options: _Options, words: list[str], way: Way | None) -> bool:
    """Learn to label points from labeled files, and print what was found; False where a network is to be trained."""
    if way is Way.BOTH:
        raise ValueError(f"--way {way} with labels of points; expected features or trained")
    if options.earlier is not None:
        raise ValueError(
            "--from with labels of points: it adds scans to a model of few scans, and a model of labeled points is "
            "learned anew from all its files; expected those of before and the new ones, without --from"
        )
    # Known without a look at the files: the rows of a folder are those of a training.
    if way is Way.TRAINED and len(files) == 1 and Path(files[0]).is_dir():
        return False
    load_libraries()
    hide_bars_of_datasets()
    from hf_any3d.cli.train_requests import tiles_request
    from hf_any3d.training.tiles.training import learn_tiles

    request = tiles_request(files, options.of_tiles(files[0]), words, way)
    if request is None:
        return False
    with _output_on_stderr() as left_out:
        learned = learn_tiles(request, files)
    _print_result(request.arguments.output_dir, learned.lines, _COMMANDS[Task.SEGMENTATION])
    left_out.finish()
    return True


def _check_way(way: Way | None, source: _Source, earlier: Path | None) -> None:
    """Refuse frozen features where something else asks for a training."""
    # These ask for no frozen features, and go with all data.
    if earlier is None and way not in (Way.FEATURES, Way.BOTH):
        return
    contradiction = None
    if source.recipe is not None:
        contradiction = "a recipe"
    elif way is Way.TRAINED or (way is Way.BOTH and earlier is not None):
        contradiction = f"--way {way}"
    elif source.task is Task.SEGMENTATION:
        contradiction = "labels of points"
    elif source.task is not Task.CLASSIFICATION:
        contradiction = "boxes"
    if contradiction is not None:
        option = "--from" if earlier is not None else f"--way {way}"
        raise ValueError(f"{option} with {contradiction}; expected scans to classify by frozen features")


def _train(source: _Source, arguments: dict[str, Any], way: Way | None) -> tuple[str, list[str]]:
    """Train; returns the directory of the model, and what was found, line by line."""
    from hf_any3d.cli.train_requests import scans_request, task_request
    from hf_any3d.training.few_scans.training import learn_scans
    from hf_any3d.training.program import figures, train

    # A recipe says how it is trained, so that no way is chosen.
    if source.task is Task.CLASSIFICATION and source.recipe is None:
        of_scans, rows = scans_request(arguments, way)
        return arguments["output_dir"], learn_scans(of_scans, rows).lines
    request = task_request(source.task, arguments, source.recipe)
    return request.training.output_dir, figures(train(request))


def _find_source(data: str | None, dataset: str | None, task: Task | None) -> _Source:
    """Find the data, and what they are for if `task` does not say it."""
    # Labels tell the task where the data are known; those on the hub are taken for labeled clouds.
    arguments, recipe, labels = find_data(data, dataset)
    if task is Task.DETECTION and arguments.get("dataset_name") == "folder":
        # Its error names the files of boxes.
        arguments, recipe, labels = find_data(data, "scans_with_boxes")
    from hf_any3d.data.catalog.folder_layout import LAYOUTS

    is_folder = arguments.get("dataset_name") == "folder" and dataset is None
    expected = {None: (LABELED_CLOUDS, LABELED_POINTS), Task.CLASSIFICATION: (LABELED_CLOUDS,)}
    if is_folder and task in expected and labels not in expected[task]:
        raise ValueError(
            f"{data}: no folders in it are named after classes; expected {LAYOUTS}, or files whose points have "
            "classes, which --task segmentation learns"
        )
    return _Source(arguments, recipe, task or _TASKS.get(labels or "", Task.CLASSIFICATION))


def find_data(data: str | None, dataset: str | None) -> tuple[dict[str, Any], Path | None, str | None]:
    """Return arguments of the data, a recipe that has them, and what labels belong to, if that is known."""
    if dataset is not None:
        entry = find_dataset(dataset)
        folder = {} if data is None else {"data_dir": data}
        return {"dataset_name": entry.name, **folder}, None, entry.labels()
    assert data is not None
    if Path(data).suffix.lower() in _RECIPES:
        # The name of a packaged recipe, unless there is a file of this name here.
        packaged = _RECIPES_FOLDER / data
        recipe = packaged if packaged.is_file() and not Path(data).is_file() else Path(data)
        from hf_any3d.training.arguments import read_settings

        # A recipe names its dataset, which tells what the labels belong to.
        return {}, recipe, DATASETS.get(str(read_settings(recipe).get("dataset_name", "")))
    entry = find_dataset(data)
    if entry.file is not None:
        return {"train_file": str(entry.file)}, None, entry.labels()
    arguments: dict[str, Any] = {"dataset_name": entry.name}
    if entry.folder is not None:
        arguments["data_dir"] = str(entry.folder)
    # One damaged file is reported at the end, and does not waste a training.
    if entry.name == "folder":
        arguments["dataset_options"] = {"on_error": "skip"}
    return arguments, None, entry.labels()


def _encoder_arguments(encoder: str | None) -> dict[str, str]:
    if encoder is None:
        return {}
    if not Path(encoder).is_dir() and "/" not in encoder:  # an old name on the hub, without an owner
        return {"encoder_name_or_path": encoder}
    encoder = find_model(encoder)
    try:
        model_type = str(read_model_config(encoder).get("model_type"))
    except OSError:
        if is_published(encoder):
            raise
        model_type = ""  # the default encoder may be in an installed package, although the hub cannot be reached
    if model_type in MODEL_TYPES and MODEL_TYPES[model_type].is_point_encoder:
        return {"model_type": model_type, "model_name_or_path": encoder}
    return {"encoder_name_or_path": encoder}
