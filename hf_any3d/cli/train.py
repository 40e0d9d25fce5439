"""`hf-any3d train`: train a classifier, segmentation model or detector on a folder, a file or a dataset."""

from __future__ import annotations

import contextlib
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_any3d.cli.common import (
    Axis,
    ModelCommand,
    find_model,
    hide_bars_of_datasets,
    load_libraries,
    option,
    read_model_config,
    skip_hub_if_offline,
)
from hf_any3d.cli.data import find_dataset
from hf_any3d.cli.inputs import LeftOutFiles
from hf_any3d.hub.published_table import is_published
from hf_any3d.registry import DATASETS, FORMATS, LABELED_POINTS, LABELED_WITH_BOXES, MODEL_TYPES
from hf_any3d.utils.messages import print_line, printable

if TYPE_CHECKING:
    from hf_any3d.training.program import TrainingTask

_RECIPES = (".yaml", ".yml", ".json")
# Argument -> option of this command.
_SHORT = {"num_train_epochs": "epochs", "per_device_train_batch_size": "batch-size", "learning_rate": "learning-rate"}
_RECIPES_FOLDER = Path(__file__).parents[1] / "recipes"


class Way(StrEnum):
    """Way of learning of a classifier."""

    FEATURES = "features"
    TRAINED = "trained"
    BOTH = "both"
    BEST = "best"


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
            args = [*args[:start], " ".join(args[start:end]), *args[end:]]
        return super().parse_args(ctx, args)


_TASKS = {LABELED_POINTS: Task.SEGMENTATION, LABELED_WITH_BOXES: Task.DETECTION}
_COMMANDS = {
    Task.CLASSIFICATION: "predict",
    Task.SEGMENTATION: "segment",
    Task.DETECTION: "detect",
    Task.LAYOUTS: "detect",
}


def _print_all_help(context: typer.Context, task: Task) -> None:
    _print_text(context.get_help())
    from transformers import HfArgumentParser

    parser = HfArgumentParser(_task_class(task).argument_classes(), add_help=False, usage="")  # pyright: ignore[reportArgumentType]
    print_line(f"All other options, for --task {task.value}; they may also be written in a YAML file:")
    _print_text(parser.format_help().partition("options:\n")[2])
    if task is Task.CLASSIFICATION:
        from hf_any3d.training.few_scans.training import FewScansArguments

        parser = HfArgumentParser(FewScansArguments, add_help=False, usage="")  # pyright: ignore[reportArgumentType]
        print_line("Options of --way features, besides those of the data above:")
        _print_text(parser.format_help().partition("options:\n")[2])
    if task is Task.SEGMENTATION:
        from hf_any3d.training.tiles.training import TilesArguments

        parser = HfArgumentParser(TilesArguments, add_help=False, usage="")  # pyright: ignore[reportArgumentType]
        print_line("Options of a few labeled files (DATA is a folder of them, or several files):")
        _print_text(parser.format_help().partition("options:\n")[2])


def _print_text(text: str) -> None:
    for line in text.splitlines():
        print_line(line)


def train(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA",
            help="A folder with a folder of files for each class, a Parquet file or folder of them, the name of a "
            "dataset in the catalog or on the hub (owner/name), or a recipe (.yaml), your own or one of the package. "
            "With --task segmentation, files whose points have classes, such as .laz, or a folder of them.",
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
            "by default as the data require."
        ),
    ] = None,
    way: Annotated[
        Way | None,
        option(
            "features: frozen features with a linear head, in seconds; trained: a model around a frozen encoder; "
            "both: the mean answer of the first and of the trained packaged encoder, or of the one that --encoder "
            "names, in minutes; best: whichever of them is best for so many scans. By default features for up to some "
            "hundred scans; options of training mean trained."
        ),
    ] = None,
    earlier: Annotated[
        Path | None,
        option(
            "Directory of a model of few scans to add the scans of DATA to, reusing the features of its own.", "--from"
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
    points: Annotated[int | None, option("Points per cloud; by default 1,024.", min=1)] = None,
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
    if all_options:
        _print_all_help(context, task or Task.CLASSIFICATION)
        return
    words = [*(words or ()), *context.args]
    data = words.pop(0) if words and not words[0].startswith("-") else None
    if data is None and dataset is None:
        raise ValueError("DATA is missing; expected a folder, a Parquet file, a dataset's name, or a recipe")
    skip_hub_if_offline()
    if dataset is None and (tiles := _labeled_files(data, words, task)):
        given = {"num_train_epochs": epochs, "per_device_train_batch_size": batch_size, "learning_rate": learning_rate}
        given |= {"num_points": points, "augment": augment, "encoder": encoder, "seed": seed}
        asked = {name: value for name, value in given.items() if value is not None}
        asked["output_dir"] = str(output or Path("outputs") / Path(tiles[0]).stem)
        if _learns_tiles(tiles, asked, words, way):
            return
    settings, recipe, labels = find_data(data, dataset)
    if task is Task.DETECTION and settings.get("dataset_name") == "folder":
        settings, recipe, labels = find_data(data, "scans_with_boxes")  # whose error names the files of boxes
    task = task or _TASKS.get(labels or "", Task.CLASSIFICATION)
    options = {
        "output_dir": output or (None if recipe else Path("outputs") / Path(data or dataset or "").stem),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "num_points": points,
        "seed": seed,
        "up_axis": up_axis,
        "from_model": None if earlier is None else find_model(str(earlier)),
        # Commas also separate the settings of a transform, such as scale:low=0.5,high=2.
        "augment": None if augment is None else re.split(r"\s+|,(?!\w+=)", augment.strip()),
    }
    for name, value in options.items():
        if value is not None:
            # Choices of the command line are texts elsewhere.
            settings[name] = str(value) if isinstance(value, (Path, StrEnum)) else value
    settings |= {"encoder": find_model(encoder)} if encoder and way is Way.FEATURES else _encoder_settings(encoder)
    if other := _not_for_few_scans(task, recipe, way, earlier):
        used = "--from" if earlier is not None else f"--way {way}"
        raise ValueError(f"{used} with {other}; expected scans to classify by frozen features")
    load_libraries()
    hide_bars_of_datasets()
    from hf_any3d.training.arguments import read_words
    from hf_any3d.training.few_scans.training import FewScansArguments
    from hf_any3d.utils.atomic_files import release_claims

    kinds = _task_class(task).argument_classes()
    few = [FewScansArguments] if task is Task.CLASSIFICATION else []
    settings |= read_words([*few, *kinds], words, "hf-any3d train --help-all")
    # Progress and the trainer's output go to stderr, so that stdout holds the result alone.
    try:
        with contextlib.redirect_stdout(sys.stderr), LeftOutFiles() as left_out:
            folder, lines = _train(task, settings, recipe, way)
    finally:
        release_claims()
    for line in lines:
        print_line(printable(line))
    _store_facts(folder)
    print_line(f"{folder}: model, card and metrics.json; try: hf-any3d {_COMMANDS[task]} FILE --model {folder}")
    left_out.finish()


def _store_facts(folder: str) -> None:
    """Store what `info` says of a model: everything is imported now, which the first `info` then need not do."""
    if Path(folder).is_dir():
        from hf_any3d.cli.model import store_facts
        from hf_any3d.cli.model_facts import model_facts

        with contextlib.suppress(ValueError, OSError):
            store_facts(folder, None, model_facts(folder))


def _labeled_files(data: str | None, words: list[str], task: Task | None) -> list[str]:
    """Return files and folders of labeled points, which are taken off the words; none for other data."""
    if data is None or task not in (None, Task.SEGMENTATION):
        return []
    path = Path(data)
    is_file = path.is_file() and path.suffix[1:].lower() in FORMATS
    if not is_file and not (task is Task.SEGMENTATION and path.is_dir() and find_dataset(data).name == "folder"):
        return []
    found = [data]
    while words and not words[0].startswith("-"):
        found.append(words.pop(0))
    return found


def _learns_tiles(files: list[str], settings: dict[str, Any], words: list[str], way: Way | None) -> bool:
    """Learn to label points from labeled files, and print what was found; False where a network is to be trained."""
    if way in (Way.BOTH, Way.BEST):
        raise ValueError(f"--way {way} with labels of points; expected features or trained")
    if way is Way.TRAINED and len(files) == 1 and Path(files[0]).is_dir():
        return False
    load_libraries()
    hide_bars_of_datasets()
    from hf_any3d.training.arguments import read_words
    from hf_any3d.training.tasks import Segmentation
    from hf_any3d.training.tiles.training import Tiles, TilesArguments, learn_tiles
    from hf_any3d.training.tiles.ways import TRAINED, choose_way
    from hf_any3d.utils.atomic_files import release_claims

    kinds = [*Segmentation.argument_classes(), TilesArguments]
    settings = settings | read_words(kinds, words, "hf-any3d train --task segmentation --help-all")
    if choose_way(files, settings, way) == TRAINED:
        return False
    try:
        with contextlib.redirect_stdout(sys.stderr), LeftOutFiles() as left_out:
            learned = learn_tiles(Tiles.from_settings(settings), files)
    finally:
        release_claims()
    for line in learned.lines:
        print_line(printable(line))
    folder = settings["output_dir"]
    print_line(f"{folder}: model, card and metrics.json; try: hf-any3d segment FILE --model {folder}")
    left_out.finish()
    return True


def _not_for_few_scans(task: Task, recipe: Path | None, way: Way | None, earlier: Path | None) -> str | None:
    """Return what asks for training beside an option that asks for frozen features; None without a contradiction."""
    if earlier is None and way not in (Way.FEATURES, Way.BOTH, Way.BEST):
        return None
    if recipe is not None:
        return "a recipe"
    if way is Way.TRAINED or (way in (Way.BOTH, Way.BEST) and earlier is not None):
        return f"--way {way}"
    texts = {Task.CLASSIFICATION: None, Task.SEGMENTATION: "labels of points"}
    return texts.get(task, "boxes")


def _task_class(task: Task) -> type[TrainingTask]:
    from hf_any3d.training import detection, layouts, tasks

    return {
        Task.CLASSIFICATION: tasks.Classification,
        Task.SEGMENTATION: tasks.Segmentation,
        Task.DETECTION: detection.Detection,
        Task.LAYOUTS: layouts.Layouts,
    }[task]


def _train(task: Task, settings: dict[str, Any], recipe: Path | None, way: Way | None) -> tuple[str, list[str]]:
    """Train; returns the directory of the model, and what was found, line by line."""
    from hf_any3d.training.arguments import read_recipe
    from hf_any3d.training.few_scans.training import OPTIONS
    from hf_any3d.training.few_scans.ways import learn_scans
    from hf_any3d.training.program import figures, train

    if task is Task.CLASSIFICATION and recipe is None:
        foreign = sorted(settings.keys() - OPTIONS)
        if foreign and (way is Way.FEATURES or "from_model" in settings):
            name = _SHORT.get(foreign[0], foreign[0])
            raise ValueError(f"--{name} has no effect on frozen features with a linear head; expected --way trained")
        return settings["output_dir"], learn_scans(settings, way).lines
    task_class = _task_class(task)
    below = {} if recipe is None else read_recipe(recipe, task_class.argument_classes())
    request = task_class.from_settings(settings, below)
    return request.training.output_dir, figures(train(request))


def find_data(data: str | None, dataset: str | None) -> tuple[dict[str, Any], Path | None, str | None]:
    """Return settings of `DataArguments`, a recipe that has them, and what labels belong to, if that is known."""
    if dataset is not None:
        entry = find_dataset(dataset)
        return {"dataset_name": entry.name, **({} if data is None else {"data_dir": data})}, None, entry.labels()
    assert data is not None
    if Path(data).suffix.lower() in _RECIPES:
        packaged = _RECIPES_FOLDER / data
        recipe = packaged if packaged.is_file() and not Path(data).is_file() else Path(data)
        from hf_any3d.training.arguments import read_settings

        return {}, recipe, DATASETS.get(str(read_settings(recipe).get("dataset_name", "")))
    entry = find_dataset(data)
    if entry.file is not None:
        return {"train_file": str(entry.file)}, None, entry.labels()
    settings: dict[str, Any] = {"dataset_name": entry.name}
    if entry.folder is not None:
        settings["data_dir"] = str(entry.folder)
    if entry.name == "folder":
        settings["dataset_options"] = {"on_error": "skip"}
    return settings, None, entry.labels()


def _encoder_settings(encoder: str | None) -> dict[str, str]:
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
