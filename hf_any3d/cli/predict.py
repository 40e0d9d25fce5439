"""Commands that run a model over files: predict, zero-shot and features."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hf_any3d.cli.common import (
    AsCsv,
    AsJson,
    BatchSize,
    Device,
    check_model,
    open_pipeline,
    option,
    print_note,
    published_models,
    read_model_config,
)
from hf_any3d.cli.inputs import (
    Files,
    FileType,
    Inputs,
    find_inputs,
    finish,
    for_each_file,
    read_text_features,
)
from hf_any3d.cli.outputs import DATA, VIEWS, Gallery, Row, check_output, print_rows, write_data
from hf_any3d.data.no_object import why_no_object, why_too_large
from hf_any3d.many_files.files import Cloud
from hf_any3d.many_files.work import Answer, answerer, feature_of, usual_batch_size
from hf_any3d.registry import FORMATS, NONE_OF_THESE
from hf_any3d.utils.messages import print_line, printable

DOUBTED, MUCH_LESS = 0.1, 3.0
"""Unknown score from which on other axes are tried, and by how much less that of a turned cloud is, as logits, which
then clearly looks like something known (`studies/none_of_these.py`)."""


class Axis(StrEnum):
    """Axes of coordinates."""

    X = "x"
    Y = "y"
    Z = "z"


EMBEDDING_COMMANDS = ("predict", "zero-shot", "segment", "detect", "features")
"""Commands of the models that have features."""
Model = Annotated[str | None, option("Directory or hub name of the model; it may also come before the files.")]
Output = Annotated[
    Path | None, option("Also write a page (.html) or picture (.png) of the clouds, or a table (.json, .csv).")
]
UpAxis = Annotated[
    Axis | None, option("Axis that points up in the files: x, y or z; by default that of the model's training.")
]
TextFeatures = Annotated[
    Path | None,
    option(
        "Features of the labels that were computed elsewhere, an array (labels, channels) in a .npy file, for a model "
        "whose text encoder cannot be opened here."
    ),
]


class Feature(StrEnum):
    """Features of a cloud."""

    POOLED = "pooled"
    CLASS_TOKEN = "class_token"
    TOKENS = "tokens"


def predict(
    files: Files,
    model: Annotated[
        str | None, option("Directory or hub name of a classifier; by default the small one that comes along.")
    ] = None,
    labels: Annotated[
        str | None, option("For a zero-shot model: labels to choose from, separated by commas.", "--labels", "-l")
    ] = None,
    text_features: TextFeatures = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels for each file.")] = 3,
    votes: Annotated[
        int | None, option("Answer by the mean of this many slightly stretched copies: slower, often better.", min=1)
    ] = None,
    unknown: Annotated[
        bool,
        option("Say how unlike the clouds of its training a file is, if the model knows.", "--unknown/--no-unknown"),
    ] = True,
    up_axis: UpAxis = None,
    output: Output = None,
    batch_size: BatchSize = None,
    device: Device = None,
    file_type: FileType = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Classify point files and meshes.

    A folder stands for all files of readable types in it and in its subfolders. Bad files are reported, the others
    are classified, and the exit code is 2.
    """
    if labels is not None:
        if votes is not None:
            raise ValueError("--votes with --labels, whose models do not vote; expected one of them")
        zero_shot(
            files,
            labels,
            model,
            text_features=text_features,
            top_k=top_k,
            up_axis=up_axis,
            output=output,
            batch_size=batch_size,
            device=device,
            file_type=file_type,
            as_json=as_json,
            as_csv=as_csv,
        )
        return
    if text_features is not None:
        raise ValueError("--text-features belong to --labels, which are missing")
    model, files = split_model(files, model)
    inputs = find_inputs(files, file_type)
    check_output(output, (*VIEWS, *DATA), as_json=as_json, as_csv=as_csv)
    name = classifier_or_default(model)
    pipe = open_pipeline("point-cloud-classification", name, device)
    arguments = {"top_k": top_k, "up_axis": up_axis, "votes": votes, "unknown": unknown}
    arguments["one_sided"] = unknown
    _classify(pipe, name, inputs, arguments, output, batch_size, as_json, as_csv)


def zero_shot(
    files: Files,
    labels: Annotated[
        str, option("Labels to choose from, separated by commas: 'chair, lamp, car'.", "--labels", "-l")
    ],
    model: Model = None,
    template: Annotated[
        str | None, option("Text with {} for a label, such as 'a scan of a {}.'; by default that of the training.")
    ] = None,
    text_features: TextFeatures = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels for each file.")] = 3,
    up_axis: UpAxis = None,
    output: Output = None,
    batch_size: BatchSize = None,
    device: Device = None,
    file_type: FileType = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Classify point files and meshes among labels of your own."""
    name, files = split_model(files, model, "zero-shot")
    inputs = find_inputs(files, file_type)
    check_output(output, (*VIEWS, *DATA), as_json=as_json, as_csv=as_csv)
    config = read_model_config(check_model(name, "zero-shot"))
    # Before the model is loaded, which may take minutes.
    if text_features is None and config.get("aligned_with") and "text_tower" not in (config.get("parts") or {}):
        raise ValueError(
            f"{name}: its labels are encoded by {config['aligned_with']}, which cannot be opened here; give features "
            "of them that were computed with it as --text-features FILE.npy"
        )
    pipe = open_pipeline("zero-shot-point-cloud-classification", name, device)
    features = None if text_features is None else read_text_features(text_features)
    arguments = {"candidate_labels": labels, "hypothesis_template": template, "text_embeds": features}
    arguments |= {"top_k": top_k, "up_axis": up_axis}
    _classify(pipe, name, inputs, arguments, output, batch_size, as_json, as_csv)


def _classify(
    pipe: Any,
    model: str,
    inputs: Inputs,
    arguments: dict[str, Any],
    output: Path | None,
    batch_size: int | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    up_axis = arguments["up_axis"] or pipe.feature_extractor.up_axis
    gallery = Gallery(output if _suffix(output) in VIEWS else None, len(inputs), up_axis)
    titles = inputs.titles()
    run = prediction_answerer(answerer(pipe, model, **arguments))
    is_regression = pipe.model.config.problem_type == "regression"

    def turned(cloud: Cloud, axis: str) -> dict[str, Any]:
        # A cloud of its own, so that a note is not told for each axis.
        again = prediction_answerer(answerer(pipe, model, **{**arguments, "up_axis": axis}))
        return again([Cloud(cloud.name, cloud.data)])[0]

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        rows = run(clouds)
        for cloud, row in zip(clouds, rows, strict=True):
            if "error" not in row:
                first = row["predictions"][0]
                one_sided = [prediction.pop("one_sided", 0.0) for prediction in row["predictions"]][0]
                reason = why_no_object(cloud.data, up_axis)
                if reason is None and first.get("unknown", 0.0) > DOUBTED:
                    reason = why_unlike(cloud, up_axis, first["unknown"], turned)
                if reason is None and one_sided > 0.5:
                    reason = (
                        "looks as if seen from one side, and the model has learned whole shapes: scan it from more "
                        "sides, or train with scans like it"
                    )
                # The pipeline has warned of what is too large.
                if reason is not None and why_too_large(cloud.data) is None:
                    cloud.warnings.append(f"{cloud.name}: {reason}")
                if is_regression:
                    best = ", ".join(f"{one['label']} {one['score']:.6g}" for one in row["predictions"])
                else:
                    best = f"{first['label']}, {100 * first['score']:.0f} %" if first["label"] else NONE_OF_THESE
                gallery.add_file(cloud.data, f"{titles[cloud.name]}: {best}")
        return rows

    width = file_width(inputs)
    label_width = max(map(len, map(printable, _labels(pipe, arguments))))

    def line(row: Row) -> str:
        found = row["predictions"]
        shown = [f"{one['score']:12.6g}" if is_regression else f"{100 * one['score']:5.1f} %" for one in found]
        cells = [
            f"{printable(one['label']):<{label_width}} {score}"
            for one, score in zip(found, shown, strict=True)
            if one["label"]
        ]
        return f"{printable(row['file']):<{width}}  " + ("   ".join(cells) or NONE_OF_THESE)

    rows = for_each_file(inputs, answer, batch_size or usual_batch_size(pipe), show=is_quiet(as_json, as_csv))
    done = print_rows(rows, line, prediction_cells, as_json=as_json, as_csv=as_csv)
    gallery.write(f"predictions of {model}")
    if output is not None and _suffix(output) in DATA:
        write_data(output, done, prediction_cells)
    finish(done)


def _labels(pipe: Any, arguments: dict[str, Any]) -> Iterable[str]:
    given = arguments.get("candidate_labels")
    return pipe.model.config.id2label.values() if given is None else [name.strip() for name in given.split(",")]


def prediction_answerer(run: Callable[[list[Cloud]], list[Any]]) -> Answer:
    """Return a function from clouds to rows with `predictions`, of a function of `answerer`."""
    return lambda clouds: [one if isinstance(one, dict) else {"predictions": one} for one in run(clouds)]


def prediction_cells(row: Row) -> Iterator[Row]:
    """Yield the CSV row of a prediction: label and score, then those of the next best labels."""
    cells = {"file": row["file"]}
    for number, prediction in enumerate(row.get("predictions", ()), 1):
        ending = "" if number == 1 else f"_{number}"
        cells |= {f"label{ending}": prediction["label"], f"score{ending}": f"{prediction['score']:.6f}"}
        if number == 1 and "unknown" in prediction:
            cells["unknown"] = f"{prediction['unknown']:.6f}"
    yield cells | problems(row)


def why_unlike(cloud: Cloud, up_axis: str, unknown: float, answer: Callable[[Cloud, str], Row]) -> str | None:
    """Find whether a cloud is unlike those of a model's training because it lies on its side.

    Args:
        cloud: The cloud.
        up_axis: The axis that was taken to point up.
        unknown: Its unknown score.
        answer: Returns the row of the cloud with another axis that points up.

    Returns:
        The reason, None if it is unlikely.
    """
    others = {axis: answer(cloud, axis) for axis in Axis if axis != up_axis}
    first = {axis: row["predictions"][0] for axis, row in others.items() if "error" not in row}
    known = {axis: prediction for axis, prediction in first.items() if prediction["label"] is not None}
    best = min(known, key=lambda axis: known[axis]["unknown"], default=None)
    if best is None or not clearly_less(known[best]["unknown"], unknown):
        return None
    return f"if {best} points up it looks like {known[best]['label']}: try --up-axis {best}"


def clearly_less(unknown: float, other: float) -> bool:
    """Return whether a cloud is much less unlike those of the training than if another axis points up."""
    least = 1e-9  # a score in single precision may be 0 or 1
    first, second = (min(max(score, least), 1 - least) for score in (unknown, other))
    return math.log(second / (1 - second)) - math.log(first / (1 - first)) > MUCH_LESS


def features(
    files: Files,
    model: Model = None,
    feature: Annotated[Feature, typer.Option(help="pooled, class_token, or tokens for their mean.")] = Feature.POOLED,
    up_axis: UpAxis = None,
    output: Annotated[
        Path | None,
        option(
            "Also write arrays (.npz with files and features, .npy), a table (.json, .csv), or a map of similar "
            "clouds (.html, .png), colored by folder."
        ),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = None,
    file_type: FileType = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Extract a feature vector of each file, for search, clustering or a head of your own."""
    name, files = split_model(files, model, "features")
    inputs = find_inputs(files, file_type)
    suffix = check_output(output, (".npz", ".npy", *VIEWS, *DATA), as_json=as_json, as_csv=as_csv)
    name = check_model(name, *EMBEDDING_COMMANDS)
    pipe = open_pipeline("point-cloud-feature-extraction", name, device)
    answer = feature_answerer(pipe, name, feature.value, up_axis)
    width = file_width(inputs)

    def line(row: Row) -> str:
        start = " ".join(f"{value:.3f}" for value in row["features"][:4])
        return f"{printable(row['file']):<{width}}  {len(row['features'])} features: {start} …"

    rows = for_each_file(inputs, answer, batch_size or usual_batch_size(pipe), show=is_quiet(as_json, as_csv))
    done = print_rows(rows, line, feature_cells, as_json=as_json, as_csv=as_csv)
    good = [row for row in done if "error" not in row]
    if output is not None and suffix in DATA:
        write_data(output, done, feature_cells)
    elif output is not None and good:
        _write_features(output, [row["file"] for row in good], np.array([row["features"] for row in good], np.float32))
    finish(done)


def feature_answerer(pipe: Any, model: str, feature: str, up_axis: str | None = None) -> Answer:
    """Return a function from clouds to rows with `features`, a list of numbers."""
    run = answerer(pipe, model, up_axis=up_axis)

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        rows = []
        for result in run(clouds):
            if "error" not in result:
                values = feature_of(result, feature, "--feature")
                result = {"features": [round(float(value), 6) for value in values]}
            rows.append(result)
        return rows

    return answer


def feature_cells(row: Row) -> Iterator[Row]:
    """Yield the CSV row of features, a column each."""
    values = row.get("features", ())
    yield {"file": row["file"], **{f"feature_{n}": value for n, value in enumerate(values)}, **problems(row)}


def _write_features(output: Path, names: list[str], values: np.ndarray) -> None:
    from hf_any3d.utils.atomic_files import atomic_write

    if output.suffix.lower() in VIEWS:
        from hf_any3d.visualization.show import project_features, write_feature_map

        if len(names) < 4:
            raise ValueError(f"--output: {output} for {len(names)} files; a map needs at least 4")
        # t-SNE needs more clouds than three times the perplexity.
        places = project_features(values, perplexity=min(25.0, (len(names) - 1) / 3))
        folders = [Path(name).parent.name or "." for name in names]
        classes = sorted(set(folders))
        labels = np.array([classes.index(folder) for folder in folders])
        heading = "features; nearby clouds are similar"
        write_feature_map(output, places, labels, classes, texts=[Path(n).name for n in names], heading=heading)
    else:
        # Opened here: numpy appends an ending to names without one, as unfinished files have.
        with atomic_write(output) as unfinished, open(unfinished, "wb") as file:
            if output.suffix.lower() == ".npz":
                np.savez(file, files=np.array(names), features=values)
            else:
                np.save(file, values)
    print_line(f"{output}: {values.shape[0]} × {values.shape[1]}")


def split_model(files: Sequence[str], model: str | None, command: str | None = None) -> tuple[Any, list[str]]:
    """Separate the model from the files, if it is the first of them and not `--model`.

    Args:
        files: Words of the command line.
        model: `--model`.
        command: The command, one without a default model.

    Returns:
        The model, None for a default one, and the files.

    Raises:
        ValueError: There is no model, and no default; a note lists published ones.
    """
    files = list(files)
    if model is not None:
        return model, files
    first = Path(files[0])
    is_model = any((first / name).is_file() for name in ("config.json", "adapter_config.json"))
    # A word that is neither a file nor a pattern is taken for a name on the hub, unless it ends like a file of points.
    is_name = files[0] != "-" and not first.exists() and not set("*?[") & set(files[0])
    if is_model or (is_name and first.suffix.lower()[1:] not in FORMATS):
        if len(files) > 1:
            return files[0], files[1:]
        if is_model:
            raise ValueError(f"{files[0]} is a model; expected files too")
    if command is None:
        return None, files
    error = ValueError("--model is missing; expected the directory or hub name of a model")
    for line in published_models(command):
        error.add_note(line)
    raise error


def classifier_or_default(model: str | None) -> str:
    """Return the directory or hub name of a classifier; None stands for the one that comes with the package."""
    if model is not None:
        return check_model(model, "predict")
    from hf_any3d.pipelines import default_model

    name = default_model()
    print_note(f"no --model: using the classifier of household objects that comes with the package, {name}")
    return name


def problems(row: Row) -> dict[str, Any]:
    """Return the cell with the error of a row, if it has one."""
    return {"error": row["error"]} if "error" in row else {}


def file_width(inputs: Inputs) -> int:
    """Return the width of the column of files."""
    return max(len(printable(file.name)) for file in inputs.files)


def _suffix(output: Path | None) -> str:
    return "" if output is None else output.suffix.lower()


def is_quiet(as_json: bool, as_csv: bool) -> bool:
    """Return whether a bar is needed: a table on a terminal shows progress itself."""
    return as_json or as_csv or not sys.stdout.isatty()
