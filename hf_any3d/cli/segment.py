"""`hf-any3d segment`: a label for every point, of a model's own labels or of parts that are named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.errors import print_note
from hf_any3d.cli.inputs import Files, Inputs, finish, split_model, with_points
from hf_any3d.cli.opening import FoundModel, found_model, model_for
from hf_any3d.cli.options import Device, FileOptions, Model, option, output_option
from hf_any3d.cli.outputs import CLOUDS, DATA, VIEWS, Row, answer_inputs, file_cells, find_all, write_gallery
from hf_any3d.cli.runs import Job, RunOptions, run_job
from hf_any3d.cli.task_options import options_of
from hf_any3d.data.files.input_files import Cloud
from hf_any3d.many_files.work import Opened
from hf_any3d.registry import FORMATS, TASKS, TYPES_BY_OPTION, task_of_class
from hf_any3d.tasks.asking import usual_batch_size
from hf_any3d.tasks.parts_by_name.about import TASK as PARTS_BY_NAME
from hf_any3d.tasks.segmentation.about import TASK as SEGMENTATION
from hf_any3d.tasks.settings import settings_of
from hf_any3d.utils.messages import model_errors
from hf_any3d.utils.progress import is_watched
from hf_any3d.visualization.gallery import Gallery

# A page or picture, a cloud, a table, a folder, or a copy of the file.
_COPIES = [f".{ending}" for ending in FORMATS if ending not in TYPES_BY_OPTION]
_OUTPUTS = tuple(dict.fromkeys([*VIEWS, *CLOUDS, *DATA, "", *_COPIES]))
SegmentationOptions = Annotated[Any, options_of(SEGMENTATION.settings)]
_OF_NAMES = ("labels", "templates", "text_features")
NameOptions = Annotated[Any, options_of(PARTS_BY_NAME.settings, only=_OF_NAMES, labels="-l")]


@dataclass(frozen=True)
class CopyOptions:
    """Options of copies of the files in which only the class changed."""

    field: Annotated[
        str | None, option("For labeled copies: attribute to write the class to, such as a LAS extra-bytes dimension.")
    ] = None
    score: Annotated[
        bool, typer.Option("--score", help="For labeled copies: also write the probability of each point.")
    ] = False
    unknown: Annotated[
        bool,
        typer.Option("--unknown", help="For labeled copies: also write how unlike the training data each point is."),
    ] = False
    classes: Annotated[
        str | None,
        option(
            "For labeled copies: codes of the classes, such as 'ground=2,building=6,*=1'; * stands for all others."
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the pipeline."""
        # Only what is given, so that an empty result means that no copy was asked for.
        arguments: dict[str, Any] = {}
        if self.field is not None:
            arguments["field"] = self.field
        if self.classes is not None:
            arguments["classes"] = self.classes
        if self.score:
            arguments["write_scores"] = True
        if self.unknown:
            arguments["write_unknown"] = True
        return arguments

    def check(self, source: str, path: Path) -> None:
        """Check what can be checked before the model is loaded."""
        from hf_any3d.data.files.labels import check_labels_fit

        check_labels_fit(source, path, field=self.field, scores=self.score, unknown=self.unknown)


def segment(
    files: Files,
    asked: SegmentationOptions,
    names: NameOptions,
    options: FileOptions,
    copies: CopyOptions,
    runs: RunOptions,
    model: Model = None,
    output: Annotated[
        Path | None,
        output_option(
            "A labeled copy of the file (out.laz for a .laz), an HTML page or image, the points of one file, a "
            "table, or a folder with a copy and a page for each file; for resumable runs, a folder for copies and "
            "results.jsonl."
        ),
    ] = None,
    batch_size: Annotated[int | None, option("Blocks per batch; by default 8, or 1 for voxel models.", min=1)] = None,
    device: Device = None,
) -> None:
    """Label every point with the class or part that it belongs to.

    Point clouds of any size are processed in blocks. Models such as PatchAlign3D and Find3D find the parts that you
    name with --labels. If --output has the same extension as the input, the copy changes only the class of each point;
    .las and .laz can be mixed.
    """
    # What the names of parts are for is asked of another task.
    values = {**names.values(), **asked.values()}
    if runs.are_given:
        _run(files, model, output, values, options, copies, runs, batch_size, device)
        return
    # Output and copies are checked before the model is opened.
    found, inputs, suffix = find_all(files, model, ("segment",), output, _OUTPUTS, options)
    inputs = with_points(inputs)
    targets = _copies(inputs, output, suffix, copies)
    inputs = replace(inputs, files=[replace(file, is_copied=file.name in targets) for file in inputs.files])
    task = _task_of(found, values)
    pipe = found.open(task, device)
    answers = _answers(task, pipe, values)
    # Beside a page or picture, what the model does not read would only fill the memory.
    is_shown = suffix in VIEWS or (output is not None and not suffix)
    columns = tuple(pipe.feature_extractor.columns)
    fields = None if is_shown else _read_fields(pipe)
    inputs = replace(inputs, files=[replace(file, columns=columns, fields=fields) for file in inputs.files])
    arguments = answers.arguments | {"batch_size": batch_size or _usual_blocks(pipe)}
    gallery = Gallery(output, len(inputs), answers.up_axis)
    places = inputs.places()
    titles = inputs.titles()

    def label(cloud: Cloud) -> dict[str, Any]:
        # None where no copy is asked for, and where the format of the file cannot hold labels.
        target = targets.get(cloud.name)
        of_copy = {}
        if target is not None:
            of_copy = {"write": target, **copies.arguments()}
        with model_errors(found.name, "cannot answer"):
            result = pipe(cloud.row, progress=is_watched(), **arguments, **of_copy)
        gallery.add_view(answers.view(cloud.data, result), cloud.data, titles[cloud.name])
        if output is not None:
            # In a folder of results each file has its own place.
            place = output / places[cloud.name] if not suffix else None
            _write_beside_copy(answers, cloud, result, output, place, targets, has_copy=target is not None)
        row = answers.row(result)
        # The path of a copy is in JSON, and told below the table.
        if target is not None:
            row = {**row, "output": str(target)}
        return row

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        return [label(cloud) for cloud in clouds]

    def cells(row: Row) -> Iterator[Row]:
        return file_cells(row, answers.cells(row))

    # The pipeline shows a bar of the blocks.
    table = None if output is not None and output in targets.values() else output
    rows = answer_inputs(inputs, answer, answers.line, cells, table, options, has_bar=True)
    write_gallery(gallery, f"Labels of {found.name}")
    for row in rows:
        if "output" in row and "error" not in row:
            print_note(f"{row['output']}: {row['file']} with the class of each point")
    finish(rows)


def _run(
    files: Sequence[str],
    model: str | None,
    output: Path | None,
    values: dict[str, Any],
    options: FileOptions,
    copies: CopyOptions,
    runs: RunOptions,
    batch_size: int | None,
    device: str | None,
) -> None:
    """Write a copy of each file in which only the class of each point is new, as a run."""
    if output is None or options.as_json or options.as_csv:
        raise ValueError("--output is missing; expected a folder for copies and results.jsonl, and no --json or --csv")
    name, words = split_model(files, model, "segment")
    # The names of parts decide which pipeline opens; the others are arguments of its calls.
    given = {own: value for own, value in values.items() if value not in (None, False)}
    texts = {own: given.pop(own) for own in _OF_NAMES if own in given}
    if "labels" in texts:
        texts["candidate_labels"] = texts.pop("labels")
    # These were always stored.
    call = {"category": None, "up_axis": None, "max_points": None, **copies.arguments(), **given}
    settings = {"model": model_for(name, "segment").name, "output": str(output), "asked": texts, "call": call}
    job = Job(
        "segment",
        settings,
        _open_copies,
        writes_copies=True,
        device=device,
        batch_size=batch_size,
        file_type=options.file_type,
    )
    run_job(job, words, output / "results.jsonl", runs)


def _open_copies(settings: dict[str, Any], device: str | None, batch_size: int | None) -> Opened:
    """Open what writes labeled copies below the folder `output`, at the places of their files below `root`."""
    model = settings["model"]
    texts = dict(settings["asked"])
    if "candidate_labels" in texts:
        texts["labels"] = texts.pop("candidate_labels")
    found = found_model(model)
    task = _task_of(found, texts)
    own = settings_of(TASKS[task].settings, "runs")
    values = {name: declared.default_at("runs") for name, declared in own.items()}
    values |= {name: value for name, value in texts.items() if name in own}
    further = {}
    for name, value in settings["call"].items():
        if name in own:
            values[name] = value
        # What is no setting of this task is of copies, or is refused by the pipeline.
        elif value is not None:
            further[name] = value
    pipe = found.open(task, device)
    answers = _answers(task, pipe, values)
    arguments = {**answers.arguments, **further}
    with model_errors(model, "cannot answer"):  # arguments of other models are an error before any file is read
        pipe._sanitize_parameters(**arguments, write=settings["output"])
    arguments["batch_size"] = batch_size or _usual_blocks(pipe)

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        rows = []
        for cloud in clouds:
            # The place below the folder of results is that below the folder that all files share.
            path = Path(settings["output"]) / os.path.relpath(os.path.abspath(cloud.name), settings["root"])
            with model_errors(model, "cannot answer"):
                # The bar of the run counts files.
                result = pipe(cloud.row, progress=False, write=path, **arguments)
            rows.append({"output": str(path), **answers.row(result)})
        return rows

    # A cloud at a time: its blocks fill the batches of the model.
    return Opened(answer, 1, tuple(pipe.feature_extractor.columns))


def _answers(task: str, pipe: Any, values: Mapping[str, Any]) -> Any:
    """Return the answers of a pipeline; of settings that its task does not have, the pipeline refuses those given."""
    record = TASKS[task]
    own = settings_of(record.settings)
    answers = record.answers_class()(pipe, record.settings, values, "command")
    for name, value in values.items():
        if value and name not in own:
            answers.arguments[name] = value
    return answers


def _read_fields(pipe: Any) -> tuple[str, ...]:
    """Return the fields of a cloud that a model reads beside the points, and the faces of a mesh."""
    from hf_any3d.data.inputs import ATTRIBUTES

    fields = [ATTRIBUTES[name] for name in pipe.feature_extractor.features if name != "xyz"]
    return ("faces", *fields)


def _usual_blocks(pipe: Any) -> int:
    # A block of voxels may hold a million points.
    return usual_batch_size(pipe, 8 if pipe.feature_extractor.returns_num_points else 1)


def _write_beside_copy(
    answers: Any,
    cloud: Cloud,
    result: Mapping[str, Any],
    output: Path,
    place: Path | None,
    targets: Mapping[str, Path],
    *,
    has_copy: bool,
) -> None:
    """Write what an answer gets beside a labeled copy of its file: at its place in a folder a page.

    Points are for files without a copy, whose format cannot hold labels.
    """
    if place is not None:
        page = Gallery(place.with_name(f"{place.name}.html"), 1, answers.up_axis)
        page.add_view(answers.view(cloud.data, result), cloud.data, place.name)
        write_gallery(page, place.name)
    if has_copy:
        return
    if place is not None:
        path = place.with_name(f"{place.name}.ply")
        # Beside copies, not over them
        if path in targets.values():
            path = place.with_name(f"{place.name}.points.ply")
        _write_points(path, answers, result)
    elif output.suffix.lower() in CLOUDS:
        _write_points(output, answers, result)


def _write_points(path: Path, answers: Any, result: Mapping[str, Any]) -> None:
    """Write the points of a cloud with their labels as numbers, and as colors for programs that show no labels."""
    from hf_any3d.data.files import PointCloudData, write_point_cloud

    path.parent.mkdir(parents=True, exist_ok=True)
    labels = result["labels"]
    write_point_cloud(path, PointCloudData(result["points"], answers.palette[labels], labels=labels))


def _task_of(model: FoundModel, values: Mapping[str, Any]) -> str:
    """Return the task of a segmentation model, after checking whether it needs names of parts."""
    # The class tells whether labels have to be named: both kinds have the same command.
    if task_of_class(model.architecture) == PARTS_BY_NAME.name:
        # Templates and features are of names, and useless without them.
        if values.get("labels") is None:
            raise ValueError(f"{model.name} needs --labels of parts")
        return PARTS_BY_NAME.name
    if any(values.get(own) is not None for own in _OF_NAMES):
        raise ValueError(f"{model.name} has labels of its own")
    return SEGMENTATION.name


def _copies(inputs: Inputs, output: Path | None, suffix: str, options: CopyOptions) -> dict[str, Path]:
    """Return where the labeled copy of each file is written, by its name, and check that of a single one."""
    targets: dict[str, Path] = {}
    if output is not None and suffix not in VIEWS:
        from hf_any3d.data.files.labels import copy_endings

        if suffix:
            name = inputs.files[0].name
            is_single = len(inputs) == 1
            # Points of a .obj may become a .ply, but not a .laz; of several files .csv is a table.
            is_other = suffix in (*CLOUDS, *DATA)
            is_copy = not is_other or (is_single and suffix[1:] in copy_endings(name))
            if is_copy and not is_single:
                raise ValueError(f"--output: {output} for {len(inputs)} files; expected a folder")
            targets = {name: output} if is_copy else {}
        else:
            titles = inputs.titles()
            # Files of other formats get their points beside the copies. So do arrays of .npy: only their content tells
            # whether they have a place for labels.
            names = [file.name for file in inputs.files if not file.name.lower().endswith(".npy")]
            targets = {name: output / titles[name] for name in names if copy_endings(name)}
    # Of several files each is checked when its turn comes, so that one does not stop the others.
    if len(inputs) == 1:
        for name, path in targets.items():
            options.check(name, path)
    if options.arguments() and not targets:
        raise ValueError(
            "--field, --score, --unknown and --classes are for a labeled copy; add --output with the file extension "
            "of the input, or a folder"
        )
    return targets
