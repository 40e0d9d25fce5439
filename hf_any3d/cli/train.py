"""`hf-any3d train`: train a classifier, segmentation model or detector on a folder, a file or a dataset."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import re
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import (
    ModelCommand,
    find_model,
    load_libraries,
    option,
    print_note,
    read_model_config,
    skip_hub_if_offline,
)
from hf_any3d.cli.data import find_dataset
from hf_any3d.cli.inputs import LeftOutFiles
from hf_any3d.hub.names import similar_path
from hf_any3d.hub.published_table import is_published
from hf_any3d.registry import DATASETS, LABELED_POINTS, LABELED_WITH_BOXES, MODEL_TYPES
from hf_any3d.utils.messages import print_line, printable

_RECIPES = (".yaml", ".yml", ".json")
# Option of this command -> argument of the training program.
_ARGUMENTS = {
    "output": "output_dir",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "learning_rate": "learning_rate",
    "points": "num_points",
    "seed": "seed",
    "from": "from_model",
}
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

    parser = HfArgumentParser(_argument_classes(task), add_help=False, usage="")  # pyright: ignore[reportArgumentType]
    print_line(f"All other options, for --task {task.value}; they may also be written in a YAML file:")
    _print_text(parser.format_help().partition("options:\n")[2])
    if task is Task.CLASSIFICATION:
        few = HfArgumentParser(_argument_classes(None)[:1], add_help=False, usage="")  # pyright: ignore[reportArgumentType]
        print_line("Options of --way features, besides those of the data above:")
        _print_text(few.format_help().partition("options:\n")[2])


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
            "dataset in the catalog or on the hub (owner/name), or a recipe (.yaml), your own or one of the package.",
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
            "both: the mean answer of the two, in minutes. By default features for up to some hundred scans; options "
            "of training mean trained."
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
    seed: Annotated[int | None, option("Random seed; by default 42.", min=0)] = None,
    all_options: Annotated[
        bool,
        typer.Option("--help-all", help="Show all other options too and exit."),
    ] = False,
) -> None:
    """Train a model on your own scans or on a dataset, evaluate it, and write its card.

    Up to some hundred labeled scans get frozen features and a linear head in seconds, without a network, judged by
    cross-validation. With more scans, or with options of training, an adapter, a tokenizer and a head are trained
    around a frozen encoder, some megabytes; the same command continues an interrupted run. Files of a folder that
    cannot be read are left out, and the exit code is then 2. Any other option may follow, such as --peft lora.
    """
    if all_options:
        _print_all_help(context, task or Task.CLASSIFICATION)
        return
    words = [*(words or ()), *context.args]
    data = words.pop(0) if words and not words[0].startswith("-") else None
    if data is None and dataset is None:
        raise ValueError("DATA is missing; expected a folder, a Parquet file, a dataset's name, or a recipe")
    skip_hub_if_offline()
    name = Path(data or dataset or "").stem
    arguments, labels = data_arguments(data, dataset)
    if task is Task.DETECTION and arguments[:2] == ["--dataset_name", "folder"]:
        arguments, labels = data_arguments(data, "scans_with_boxes")  # whose error names the files of boxes
    task = task or _TASKS.get(labels or "", Task.CLASSIFICATION)
    is_recipe = bool(arguments) and not arguments[0].startswith("-")
    given: dict[str, Any] = {
        "output": output or (None if is_recipe else Path("outputs") / name),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "points": points,
        "seed": seed,
        "from": None if earlier is None else find_model(str(earlier)),
    }
    for option_name, value in given.items():
        if value is not None:
            arguments += [f"--{_ARGUMENTS[option_name]}", str(value)]
    if augment is not None:
        # Commas also separate the settings of a transform, such as scale:low=0.5,high=2.
        arguments += ["--augment", *re.split(r"\s+|,(?!\w+=)", augment.strip())]
    if encoder is not None and way is Way.FEATURES:
        arguments += ["--encoder", find_model(encoder)]
    else:
        arguments += _encoder_arguments(encoder)
    arguments += words
    if task is not Task.CLASSIFICATION or is_recipe or way is Way.TRAINED or (earlier is not None and way is Way.BOTH):
        if way in (Way.FEATURES, Way.BOTH) or earlier is not None:
            used = "--from" if earlier is not None else f"--way {way.value if way else ''}"
            other = (
                "a recipe"
                if is_recipe
                else f"--way {way.value}"
                if way is Way.TRAINED or (way is Way.BOTH and earlier is not None)
                else "boxes"
                if task in (Task.DETECTION, Task.LAYOUTS)
                else "labels of points"
            )
            raise ValueError(f"{used} with {other}; expected scans to classify by frozen features")
    from hf_any3d.utils.atomic_files import release_claims

    # Progress and the trainer's output go to stderr, so that stdout holds the result alone.
    try:
        with contextlib.redirect_stdout(sys.stderr), LeftOutFiles() as left_out:
            if way is Way.BOTH:
                lines = _learn_both(arguments, words)
            elif task is Task.CLASSIFICATION and not is_recipe and _are_few(arguments, words, way):
                lines = _learn_few_scans(arguments, words)
            else:
                _check_arguments(arguments, words, task)
                if task is Task.CLASSIFICATION and not is_recipe:
                    arguments = _with_recipe(arguments)
                lines = _run_program(arguments, task)
    finally:
        release_claims()
    for line in lines:
        print_line(printable(line))
    folder = arguments[arguments.index("--output_dir") + 1] if "--output_dir" in arguments else "the model"
    if Path(folder).is_dir():
        from hf_any3d.cli.model import store_facts
        from hf_any3d.cli.model_facts import model_facts

        # Everything is imported now, which the first `info` then need not do.
        with contextlib.suppress(ValueError, OSError):
            store_facts(folder, None, model_facts(folder))
    print_line(f"{folder}: model, card and metrics.json; try: hf-any3d {_COMMANDS[task]} FILE --model {folder}")
    left_out.finish()


def _are_few(arguments: list[str], words: list[str], way: Way | None) -> bool:
    """Return whether scans get frozen features and a linear head, as requested or by their number."""
    if way is not None:
        return way is Way.FEATURES
    from hf_any3d.training.few_scans.training import OPTIONS, given_options, plan_for_data

    given = given_options(arguments)
    if "from_model" in given:
        return True
    if given - OPTIONS:
        return False
    _check_arguments(arguments, words, None)
    _quiet()
    return plan_for_data(arguments).way == Way.FEATURES


def _learn_few_scans(arguments: list[str], words: list[str]) -> list[str]:
    from hf_any3d.training.few_scans.training import OPTIONS, given_options, learn_few_scans

    if foreign := sorted(given_options(arguments) - OPTIONS):
        short = {long: name.replace("_", "-") for name, long in _ARGUMENTS.items()}
        raise ValueError(
            f"--{short.get(foreign[0], foreign[0])} has no effect on frozen features with a linear head; expected "
            "--way trained"
        )
    _check_arguments(arguments, words, None)
    _quiet()

    return learn_few_scans(arguments).lines


def _learn_both(arguments: list[str], words: list[str]) -> list[str]:
    """Train a wrap, and average its answers with those of a linear head on frozen features; one model has both."""
    from hf_any3d.training.few_scans import training
    from hf_any3d.training.few_scans.plan import WRAP_WEIGHT

    given = training.given_options(arguments)
    if twice := sorted(given & {"wrap", "wrap_weight", "model_type", "model_name_or_path", "peft"}):
        raise ValueError(f"--{twice[0]} with --way both, which trains a wrap of its own; expected one of them")
    of_wrap = (given - training.OPTIONS) | {"encoder_name_or_path"}
    of_scans = training.OF_SCANS - {"seed", "license"}
    few, own = (training.without_options(line, of_wrap) for line in (arguments, words))
    trained, own_of_wrap = (training.without_options(line, of_scans) for line in (arguments, words))
    _check_arguments(trained, own_of_wrap, Task.CLASSIFICATION)
    trained = _with_recipe([*trained, "--validation_fraction", "0"])
    if "--model_name_or_path" in trained:
        raise ValueError("--way both: no frozen encoder for a wrap here; expected --encoder, or --way features")
    # Frozen features first: what is wrong with the scans is found before the minutes of a training.
    _learn_few_scans(few, own)
    with tempfile.TemporaryDirectory() as folder:
        wrap = str(Path(folder) / "wrap")
        _run_program([*trained, "--peft", "guided_adapter", "--output_dir", wrap], Task.CLASSIFICATION)
        return _learn_few_scans([*few, "--wrap", wrap, "--wrap_weight", str(WRAP_WEIGHT)], own)


def _quiet() -> None:
    load_libraries()
    if not sys.stderr.isatty():
        import datasets

        datasets.disable_progress_bars()


def _run_program(arguments: list[str], task: Task) -> list[str]:
    """Run the training program of a task; returns the metrics of each split as text."""
    load_libraries()

    from hf_any3d.training import detection, layouts, tasks

    run = {
        Task.CLASSIFICATION: tasks.train_classifier,
        Task.SEGMENTATION: tasks.train_segmenter,
        Task.DETECTION: detection.train_detector,
        Task.LAYOUTS: layouts.train_layouts,
    }[task]
    report = run(arguments)
    lines = []
    for split, metrics in report.metrics.items():
        figures = "   ".join(f"{key} {value:.4f}" for key, value in metrics.items() if isinstance(value, float))
        count = report.data["rows"].get(split)
        lines.append(f"{split:<12} {figures}" + (f"   on {count} clouds" if count is not None else ""))
    return lines


def _with_recipe(arguments: list[str]) -> list[str]:
    """Return arguments of the training program with the settings that were searched for little data.

    Without settings of a model among them, and without the default encoder on this machine or the hub, training starts
    from the packaged encoder's weights.
    """
    from dataclasses import fields

    from huggingface_hub.errors import RepositoryNotFoundError

    from hf_any3d.modeling.pretrained_parts.sources import EncoderUnavailableError, resolve_encoder
    from hf_any3d.training.arguments import AdapterArguments
    from hf_any3d.training.few_scans.training import given_options
    from hf_any3d.training.models import PointModelArguments

    given = given_options(arguments)
    recipe = str(_RECIPES_FOLDER / "base" / "small_data.yaml")
    # The recipe's rate is that of adapters and new weights; a pretrained point encoder would forget what it learned.
    slow = [] if "learning_rate" in given else ["--learning_rate", "1e-3"]
    if given & {"model_type", "model_name_or_path", "encoder_name_or_path"}:
        return [recipe, *(slow if "model_name_or_path" in given else []), *arguments]
    first_layer = [recipe, *([] if "num_layers" in given else ["--num_layers", "1"]), *arguments]
    if given & {entry.name for kind in (PointModelArguments, AdapterArguments) for entry in fields(kind)}:
        return first_layer
    default = PointModelArguments().encoder_name_or_path
    try:
        resolve_encoder(default)
    except (EncoderUnavailableError, RepositoryNotFoundError):
        from hf_any3d.pipelines import default_model

        print_note(
            f"{default} is neither here nor can it be fetched: training starts from the packaged encoder; with a "
            "network, or pip install hf-any3d[offline], it is the frozen encoder"
        )
        return [recipe, "--model_name_or_path", default_model(), "--head_epochs", "3", *slow, *arguments]
    return first_layer


def data_arguments(data: str | None, dataset: str | None) -> tuple[list[str], str | None]:
    """Return arguments of the training program for the data, and what their labels belong to, if that is known."""
    if dataset is not None:
        found = find_dataset(dataset)
        folder = [] if data is None else ["--data_dir", data]
        if data is not None and not Path(data).is_dir():
            raise FileNotFoundError(f"no directory {data}{similar_path(Path(data))}")
        return ["--dataset_name", found.name, *folder], found.labels()
    assert data is not None
    if Path(data).suffix.lower() in _RECIPES:
        packaged = _RECIPES_FOLDER / data
        if not Path(data).is_file() and packaged.is_file():
            data = str(packaged)
        if not Path(data).is_file():
            raise FileNotFoundError(f"no file {data}{similar_path(Path(data))}, nor a recipe of the package")
        from hf_any3d.training.arguments import read_settings

        return [data], DATASETS.get(str(read_settings(Path(data)).get("dataset_name", "")))
    found = find_dataset(data)
    if found.file is not None:
        return ["--train_file", str(found.file)], found.labels()
    arguments = ["--dataset_name", found.name]
    if found.folder is not None:
        arguments += ["--data_dir", str(found.folder)]
    if found.name == "folder":
        arguments += ["--dataset_options", json.dumps({"on_error": "skip"})]
    return arguments, found.labels()


def _encoder_arguments(encoder: str | None) -> list[str]:
    if encoder is None:
        return []
    if not Path(encoder).is_dir() and "/" not in encoder:  # an old name on the hub, without an owner
        return ["--encoder_name_or_path", encoder]
    encoder = find_model(encoder)
    try:
        model_type = str(read_model_config(encoder).get("model_type"))
    except OSError:
        if is_published(encoder):
            raise
        model_type = ""  # the default encoder may be in an installed package, although the hub cannot be reached
    if model_type in MODEL_TYPES and MODEL_TYPES[model_type].is_point_encoder:
        return ["--model_type", model_type, "--model_name_or_path", encoder]
    return ["--encoder_name_or_path", encoder]


def _argument_classes(task: Task | None) -> tuple[type, ...]:
    if task is None:
        from hf_any3d.training.few_scans.training import ARGUMENTS

        return ARGUMENTS
    from hf_any3d.training.detection import DETECTION_ARGUMENTS
    from hf_any3d.training.layouts import LAYOUT_ARGUMENTS
    from hf_any3d.training.tasks import CLASSIFICATION_ARGUMENTS, SEGMENTATION_ARGUMENTS

    return {
        Task.CLASSIFICATION: CLASSIFICATION_ARGUMENTS,
        Task.SEGMENTATION: SEGMENTATION_ARGUMENTS,
        Task.DETECTION: DETECTION_ARGUMENTS,
        Task.LAYOUTS: LAYOUT_ARGUMENTS,
    }[task]


def _check_arguments(arguments: list[str], own: list[str], task: Task | None) -> None:
    """Refuse wrong arguments in one line, before the data are loaded.

    Args:
        arguments: All words for the program.
        own: Those after the command's own options.
        task: Task of the training program; None for frozen features with a linear head.

    Raises:
        ValueError: An unknown name, with the most similar one, or a wrong value.
    """
    from dataclasses import fields

    kinds = _argument_classes(task)
    known = {entry.name for kind in kinds for entry in fields(kind) if entry.init}
    names = [word[2:].partition("=")[0] for word in own if word.startswith("--")]
    plain = {name: name.replace("-", "_") for name in names}
    # HfArgumentParser adds --no_NAME for switches that are on by default.
    if unknown := [name for name in names if not {plain[name], plain[name].removeprefix("no_")} & known]:
        few = {entry.name for entry in fields(_argument_classes(None)[0])} if task is Task.CLASSIFICATION else set()
        if plain[unknown[0]] in few:
            raise ValueError(f"--{unknown[0]} has no effect on training; it is for --way features")
        similar = difflib.get_close_matches(plain[unknown[0]], known | few | set(_ARGUMENTS), n=1)
        hint = f"; did you mean --{similar[0]}?" if similar else ""
        raise ValueError(f"no option --{unknown[0]}{hint} (hf-any3d train --help-all)")
    from hf_any3d.training.arguments import parse_arguments

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parse_arguments(kinds, arguments)
    # argparse prints an error and exits.
    except SystemExit:
        raise ValueError(printed.getvalue().strip().rpartition("error: ")[2]) from None
