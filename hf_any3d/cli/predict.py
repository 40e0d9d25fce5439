"""Commands that run a model over files: predict, zero-shot and features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from hf_any3d.cli.common import (
    Axis,
    BatchSize,
    Classifier,
    Device,
    Embedder,
    Feature,
    FeatureName,
    FileOptions,
    Model,
    TopK,
    UpAxis,
    open_pipeline,
    option,
    read_model_config,
)
from hf_any3d.cli.inputs import Files, Inputs, finish
from hf_any3d.cli.outputs import DATA, VIEWS, Gallery, Row, answer_inputs, file_cells, find_all
from hf_any3d.data.no_object import why_no_object, why_too_large
from hf_any3d.many_files.files import Cloud
from hf_any3d.many_files.work import Answer, answerer, feature_of, usual_batch_size
from hf_any3d.registry import NONE_OF_THESE
from hf_any3d.utils.messages import print_line, printable

UNLIKE_FROM, MUCH_LESS = 0.01, 1.5
"""Unknown score from which on other axes are tried, and by how much less that of a turned cloud is, as logits, which
then clearly looks like something known (`studies/results/none_of_these.md`)."""
_UNLIKE_FROM_ELSE = 0.1  # for scores without projection or energy, which are above 0.01 for nearly all clouds


EMBEDDING_COMMANDS = ("predict", "zero-shot", "segment", "detect", "features")
"""Commands of the models that have features."""
Output = Annotated[
    Path | None, option("Also write a page (.html) or picture (.png) of the clouds, or a table (.json, .csv).")
]
TextFeatures = Annotated[
    Path | None, option("Features of the labels from elsewhere, instead of the text encoder: .npy (labels, channels).")
]
Votes = Annotated[
    int | None, option("Answer by the mean of this many slightly stretched copies: slower, often better.", min=1)
]


def predict(
    files: Files,
    options: FileOptions,
    model: Classifier = None,
    labels: Annotated[
        str | None, option("For a zero-shot model: labels to choose from, separated by commas.", "--labels", "-l")
    ] = None,
    text_features: TextFeatures = None,
    top_k: TopK = 3,
    votes: Votes = None,
    unknown: Annotated[bool, option("Say how unlike the training's clouds a file is, if known.")] = True,
    up_axis: UpAxis = None,
    output: Output = None,
    batch_size: BatchSize = None,
    device: Device = None,
) -> None:
    """Classify point files and meshes.

    A folder stands for all files of readable types in it and in its subfolders. Bad files are reported, the others
    are classified, and the exit code is 2.
    """
    # Contradictions are refused before a model is looked for.
    if labels is None and text_features is not None:
        raise ValueError(f"--text-features {text_features} without --labels, whose vectors they are")
    if labels is not None and votes is not None:
        raise ValueError(f"--votes {votes} with --labels; expected a model with labels of its own")
    if labels is not None:
        zero_shot(files, labels, options, model, None, text_features, top_k, up_axis, output, batch_size, device)
        return
    name, inputs, _ = find_all(files, model, "predict", output, (*VIEWS, *DATA), options)
    pipe = open_pipeline("point-cloud-classification", name, device)
    # A scan from one side is a doubt of the same kind, so that one option silences both.
    arguments = {"top_k": top_k, "up_axis": up_axis, "votes": votes, "unknown": unknown, "one_sided": unknown}
    _classify(pipe, name, inputs, arguments, output, options, batch_size)


def zero_shot(
    files: Files,
    labels: Annotated[
        str, option("Labels to choose from, separated by commas: 'chair, lamp, car'.", "--labels", "-l")
    ],
    options: FileOptions,
    model: Model = None,
    template: Annotated[
        str | None, option("Text with {} for a label, such as 'a scan of a {}.'; by default that of the training.")
    ] = None,
    text_features: TextFeatures = None,
    top_k: TopK = 3,
    up_axis: UpAxis = None,
    output: Output = None,
    batch_size: BatchSize = None,
    device: Device = None,
) -> None:
    """Classify point files and meshes among labels of your own."""
    name, inputs, _ = find_all(files, model, "zero-shot", output, (*VIEWS, *DATA), options)
    config = read_model_config(name)
    # Before the model is loaded, which may take minutes.
    if text_features is None and config.get("aligned_with") and "text_tower" not in (config.get("parts") or {}):
        raise ValueError(
            f"{name}: its labels are encoded by {config['aligned_with']}, which cannot be opened here; give features "
            "of them that were computed with it as --text-features FILE.npy"
        )
    # Arrays alone: a pickled file could run code.
    features = None if text_features is None else np.load(text_features, allow_pickle=False)
    pipe = open_pipeline("zero-shot-point-cloud-classification", name, device)
    arguments = {"candidate_labels": labels, "hypothesis_template": template, "text_embeds": features}
    _classify(pipe, name, inputs, {**arguments, "top_k": top_k, "up_axis": up_axis}, output, options, batch_size)


def _classify(
    pipe: Any,
    model: str,
    inputs: Inputs,
    arguments: dict[str, Any],
    output: Path | None,
    options: FileOptions,
    batch_size: int | None,
) -> None:
    # Opened before the gallery, which needs the model's up axis.
    classifier = _Classifier(pipe, model, arguments)
    gallery = Gallery(output, len(inputs), classifier.up_axis)
    titles = inputs.titles()

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        rows = classifier.answer(clouds)
        for cloud, row in zip(clouds, rows, strict=True):
            if "error" not in row:
                gallery.add_file(cloud.data, f"{titles[cloud.name]}: {classifier.best(row)}")
        return rows

    size = batch_size or usual_batch_size(pipe)
    rows = answer_inputs(inputs, answer, classifier.line, prediction_cells, output, options, size)
    gallery.write(f"predictions of {model}")
    finish(rows)


class _Classifier:
    """Answers of a classifier for clouds, with a remark on those that it may not know, and their texts."""

    def __init__(self, pipe: Any, model: str, arguments: dict[str, Any]):
        self.pipe = pipe
        self.model = model
        self.arguments = arguments
        self.config = pipe.model.config
        self.up_axis: str = arguments["up_axis"] or pipe.feature_extractor.up_axis
        self.is_regression = self.config.problem_type == "regression"
        # The pipeline's steps are run on batches, so that files that cannot be answered get an error of their own.
        self._run = prediction_answerer(pipe, model, **arguments)
        labels = arguments.get("candidate_labels")
        # A zero-shot model has the labels of the call.
        names = self.config.id2label.values() if labels is None else map(str.strip, labels.split(","))
        self._width = max(len(printable(name)) for name in names)
        # Only scores with a projection or an energy are near 0 for clouds like those of the training.
        is_of_scans = getattr(self.config, "unknown_width", None) or getattr(self.config, "unknown_energy", None)
        self._unlike_from = UNLIKE_FROM if is_of_scans else _UNLIKE_FROM_ELSE

    def answer(self, clouds: list[Cloud]) -> list[dict[str, Any]]:
        """Return the row of each cloud, and warn of those that are unlike what the model has learned."""
        rows = self._run(clouds)
        for cloud, row in zip(clouds, rows, strict=True):
            if "error" in row:
                continue
            # Taken out of what is printed; it is for the remark alone.
            one_sided = [prediction.pop("one_sided", 0.0) for prediction in row["predictions"]]
            reason = self._doubt(cloud, row["predictions"][0], one_sided[0])
            # The pipeline has warned of what is too large.
            if reason is not None and why_too_large(cloud.data, self.config) is None:
                cloud.warnings.append(f"{cloud.name}: {reason}")
        return rows

    def _doubt(self, cloud: Cloud, best: dict[str, Any], one_sided: float) -> str | None:
        """Return why a cloud may be nothing that the model knows, the likeliest reason first."""
        # From what is seen without the model to what only the model knows.
        reason = why_no_object(cloud.data, self.up_axis, self.config)
        if reason is None and best.get("unknown", 0.0) > self._unlike_from:
            reason = why_unlike(cloud, self.up_axis, best["unknown"], self._answer_turned)
        if reason is None and one_sided > 0.5:
            reason = (
                "looks as if seen from one side, and the model has learned whole shapes: scan it from more sides, "
                "or train with scans like it"
            )
        return reason

    def _answer_turned(self, cloud: Cloud, axis: str) -> Row:
        """Return the row of a cloud if another axis points up."""
        run = prediction_answerer(self.pipe, self.model, **{**self.arguments, "up_axis": axis})
        # A cloud of its own, so that a note is not told for each axis.
        return run([Cloud(cloud.name, cloud.data)])[0]

    def best(self, row: Row) -> str:
        """Return the answer of a row in words; of a regression all numbers are the answer."""
        if self.is_regression:
            # Numbers of any unit, of which six digits tell enough.
            return ", ".join(f"{number['label']} {number['score']:.6g}" for number in row["predictions"])
        best = row["predictions"][0]
        return f"{best['label']}, {100 * best['score']:.0f} %" if best["label"] else NONE_OF_THESE

    def line(self, row: Row) -> str:
        """Return the line of a row: labels with their scores."""
        texts = []
        for prediction in row["predictions"]:
            score = prediction["score"]
            number = f"{score:12.6g}" if self.is_regression else f"{100 * score:5.1f} %"
            # A cloud that is none of the classes has a single prediction without a label.
            if prediction["label"]:
                texts.append(f"{printable(prediction['label']):<{self._width}} {number}")
        return "   ".join(texts) or NONE_OF_THESE


def prediction_answerer(pipe: Any, model: str, **arguments: Any) -> Answer:
    """Return a function from clouds to rows with `predictions`."""
    run = answerer(pipe, model, **arguments)
    # A dict is the error of a file, which is a row already.
    return lambda clouds: [result if isinstance(result, dict) else {"predictions": result} for result in run(clouds)]


def prediction_cells(row: Row) -> Iterator[Row]:
    """Yield the CSV row of a prediction: label and score, then those of the next best labels."""
    cells: dict[str, Any] = {}
    for number, prediction in enumerate(row.get("predictions") or (), 1):
        ending = "" if number == 1 else f"_{number}"
        cells |= {f"label{ending}": prediction["label"], f"score{ending}": f"{prediction['score']:.6f}"}
        # The unknown score is of the cloud, and the same for each of its labels.
        if number == 1 and "unknown" in prediction:
            cells["unknown"] = f"{prediction['unknown']:.6f}"
    return file_cells(row, [cells] if cells else [])


def why_unlike(cloud: Cloud, up_axis: str, unknown: float, answer: Callable[[Cloud, str], Row]) -> str | None:
    """Find whether a cloud is unlike those of a model's training because it lies on its side.

    Returns the reason, None if it is unlikely. `answer` returns the row of the cloud with another axis that points up.
    """
    # Two more runs of the model, which only clouds in doubt get.
    others = {axis: answer(cloud, axis) for axis in Axis if axis != up_axis}
    first = {axis: row["predictions"][0] for axis, row in others.items() if "error" not in row}
    # If no class is likely either when it is turned, the axis is not what is wrong.
    labeled = {axis: prediction for axis, prediction in first.items() if prediction["label"] is not None}
    best = min(labeled, key=lambda axis: labeled[axis]["unknown"], default=None)
    if best is None or not clearly_less(labeled[best]["unknown"], unknown):
        return None
    return f"if {best} points up it looks like {labeled[best]['label']}: try --up-axis {best}"


def clearly_less(unknown: float, other: float) -> bool:
    """Return whether a cloud is much less unlike those of the training than if another axis points up."""
    least = 1e-9  # a score in single precision may be 0 or 1
    first, second = (min(max(score, least), 1 - least) for score in (unknown, other))
    # As logits, since scores near 0 or 1 differ in far decimals alone.
    return math.log(second / (1 - second)) - math.log(first / (1 - first)) > MUCH_LESS


def features(
    files: Files,
    options: FileOptions,
    model: Embedder = None,
    feature: FeatureName = Feature.POOLED,
    up_axis: UpAxis = None,
    output: Annotated[
        Path | None,
        option("Also write arrays (.npz, .npy), a table (.json, .csv), or a map of similar clouds (.html, .png)."),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = None,
) -> None:
    """Extract a feature vector of each file, for search, clustering or a head of your own."""
    types = (".npz", ".npy", *VIEWS, *DATA)
    name, inputs, suffix = find_all(files, model, "features", output, types, options, EMBEDDING_COMMANDS)
    # The map is projected by t-SNE, which needs a few neighbors for each point.
    if suffix in VIEWS and len(inputs) < 4:
        raise ValueError(f"--output: {output} for {len(inputs)} files; a map needs at least 4")
    pipe = open_pipeline("point-cloud-feature-extraction", name, device)
    answer = feature_answerer(pipe, name, feature.value, up_axis)

    def line(row: Row) -> str:
        start = " ".join(f"{value:.3f}" for value in row["features"][:4])
        return f"{len(row['features'])} features: {start} …"

    size = batch_size or usual_batch_size(pipe)
    rows = answer_inputs(inputs, answer, line, feature_cells, output, options, size)
    # Tables, which have errors too, are written already; arrays and maps have the other files alone.
    good = [row for row in rows if "error" not in row]
    if output is not None and suffix not in DATA and good:
        _write_features(output, [row["file"] for row in good], np.array([row["features"] for row in good], np.float32))
    finish(rows)


def feature_answerer(pipe: Any, model: str, feature: str, up_axis: str | None = None) -> Answer:
    """Return a function from clouds to rows with `features`, a list of numbers."""
    run = answerer(pipe, model, up_axis=up_axis)

    def row(result: dict[str, Any]) -> dict[str, Any]:
        if "error" in result:
            return result
        return {"features": [round(float(value), 6) for value in feature_of(result, feature, "--feature")]}

    return lambda clouds: [row(result) for result in run(clouds)]


def feature_cells(row: Row) -> Iterator[Row]:
    """Yield the CSV row of features, a column each."""
    values = row.get("features") or ()
    return file_cells(row, [{f"feature_{n}": value for n, value in enumerate(values)}] if values else [])


def _write_features(output: Path, names: list[str], values: np.ndarray) -> None:
    from hf_any3d.utils.atomic_files import atomic_write

    if output.suffix.lower() in VIEWS:
        from hf_any3d.visualization.show import project_features, write_feature_map

        # t-SNE needs more clouds than three times the perplexity.
        places = project_features(values, perplexity=min(25.0, (len(names) - 1) / 3))
        # Colored by folder, which is the class where files are sorted by class.
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
