"""Rows of many clouds, described now and computed later: read, classified, embedded, captioned, with boxes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from hf_any3d.data.files.input_files import FILE_ERRORS, Cloud, InputFile, list_files, with_name
from hf_any3d.data.fingerprints import model_fingerprint
from hf_any3d.data.options import at_least, one_of
from hf_any3d.data.tables.file_conversion import CloudColumns
from hf_any3d.many_files.executors import Workers, limit_threads, start
from hf_any3d.many_files.work import Answer, answer_files, cut
from hf_any3d.registry import TASKS
from hf_any3d.tasks.answers import Answers
from hf_any3d.tasks.chat.about import TASK as CHAT
from hf_any3d.tasks.classification.about import TASK as CLASSIFICATION
from hf_any3d.tasks.detection.about import TASK as DETECTION
from hf_any3d.tasks.features.about import TASK as FEATURES
from hf_any3d.tasks.settings import settings_of
from hf_any3d.utils.messages import as_text, model_errors

if TYPE_CHECKING:
    import ray.data
    from datasets import Features

_FILES_AT_A_TIME, _ROWS_AT_A_TIME = 64, 16


@dataclass(frozen=True)
class Step:
    """A pipeline that adds a column, with the settings of its task.

    `identity` is the fingerprint of the model, as runs store it; rows of another one are no continuation.
    """

    task: str
    model: str
    column: str
    arguments: dict[str, Any] = field(default_factory=dict)
    feature: str = ""
    batch_size: int = 8
    identity: str = ""

    def open(self, device: str) -> Answer:
        """Open the model and return the function from clouds to rows with the column."""
        from hf_any3d.integration.opening import open_pipeline
        from hf_any3d.tasks.asking import Asked, usual_batch_size

        record = TASKS[self.task]
        pipe = open_pipeline(self.task, self.model, device)
        size = usual_batch_size(pipe, self.batch_size)
        given = self.arguments | ({"feature": self.feature} if self.feature else {})
        values = {
            name: given.get(declared.argument or name, declared.default_at("many_files"))
            for name, declared in settings_of(record.settings, "many_files").items()
        }
        asked = Asked(pipe, self.model, record, values, "many_files", further=self.arguments)

        def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
            # A step may have smaller batches than those in which files are read.
            pieces = (clouds[start : start + size] for start in range(0, len(clouds), size))
            results = [result for piece in pieces for result in asked.results(piece)]
            rows = []
            for cloud, result in zip(clouds, results, strict=True):
                if "error" in result:
                    rows.append({"error": with_name(cloud.name, ValueError(result["error"]))})
                else:
                    rows.append({self.column: asked.answers.value(result["result"])})
            return rows

        return answer

    @property
    def type(self) -> Any:
        """Type of the column in `datasets`."""
        return TASKS[self.task].answers_class().feature()


@dataclass(frozen=True)
class CloudRows:
    """Rows of point clouds, one for each file; nothing is computed before they are iterated or written.

    A row has `path`, `points (points, 3)` and the other columns of `read_point_clouds`, or, unless `keep_points`,
    instead of them those of `classify`, `embed`, `detect` and `caption`; and `error`, None for a good file. A bad file
    has None in all other columns.
    """

    files: tuple[str, ...]
    converter: CloudColumns
    on_invalid: str
    steps: tuple[Step, ...] = ()
    keep_points: bool = False

    def __len__(self) -> int:
        return len(self.files)

    @property
    def has_points(self) -> bool:
        """True if rows have the columns of points."""
        return self.keep_points or not self.steps

    @property
    def features(self) -> Features:
        """Types of the columns in `datasets`."""
        from datasets import Features, Value

        # In the order of rows: the file, its points, what models say of them, and its error.
        points = self.converter.features if self.has_points else {}
        answers = {step.column: step.type for step in self.steps}
        return Features({"path": Value("string"), **points, **answers, "error": Value("string")})

    @property
    def settings(self) -> dict[str, Any]:
        """All that determines a row besides its file, as values of JSON."""
        # Settings of points count only where rows have them: models get each complete cloud.
        converter = {**asdict(self.converter), "columns": list(self.converter.columns)} if self.has_points else None
        steps = [asdict(step) for step in self.steps]
        for step in steps:
            # The batch size changes the speed and not the rows.
            del step["batch_size"]
        return {"points": converter, "on_invalid": self.on_invalid, "steps": steps}

    def open(self, device: str = "cpu") -> Callable[[Sequence[str]], Iterator[dict[str, Any]]]:
        """Open the models in this process and return a function that yields the row of each file, in their order."""
        answers = [step.open(device) for step in self.steps]
        # Files are read in the largest batches of any step; each step cuts them to its own.
        batch_size = max([step.batch_size for step in self.steps], default=1)
        names = self.features

        def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = []
            for cloud in clouds:
                # That a file lacks a column, such as normals, shows only when its row is made.
                try:
                    rows.append(dict(self.converter.row(cloud.data)) if self.has_points else {})
                except FILE_ERRORS as error:
                    rows.append({"error": with_name(cloud.name, error)})
            for add in answers:
                # A cloud that failed in one step is left out of the next ones.
                good = [number for number, row in enumerate(rows) if "error" not in row]
                added = add([clouds[number] for number in good]) if good else []
                for number, columns in zip(good, added, strict=True):
                    rows[number] |= columns
            return [row if "error" in row else {"columns": row} for row in rows]

        def rows(files: Sequence[str]) -> Iterator[dict[str, Any]]:
            inputs = [InputFile(name) for name in files]
            for row in answer_files(inputs, answer, batch_size, read=lambda file: file.read(self.on_invalid)):
                values = {"path": as_text(row["file"]), "error": row.get("error"), **row.get("columns", {})}
                # Every row has all columns in one order, as tables need.
                yield {name: values.get(name) for name in names}

        return rows

    def dataset(self, workers: Workers | None = None) -> ray.data.Dataset:
        """Return the rows as a dataset of Ray, for further steps of its own.

        Columns of points have the type Array2D of `datasets`, which Ray hands over as arrays. By default one process
        on each CPU but one, which is left to other steps, computes them.
        """
        ray = start()
        workers = workers or Workers()
        shards = cut(self.files, _FILES_AT_A_TIME)
        count = workers.number_in(ray.cluster_resources(), len(shards))
        # A place is left for other steps, which run at the same time.
        if workers.count is None and count > 1:
            count -= 1
        # The names of a shard are bytes, which `_TableMaker` splits again at what no name of a file has.
        items = [{"files": os.fsencode("\0".join(shard.files))} for shard in shards]
        return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _TableMaker,
            # Without the names of all files, which each process would get.
            fn_constructor_args=(replace(self, files=()), workers),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            # Processes that hold all CPUs would keep other steps from ever starting.
            num_cpus=0.9 * workers.cpus,
            num_gpus=workers.gpus,
        )


def read_point_clouds(
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    num_points: int | None = None,
    mesh_points: int = 2048,
    columns: Sequence[str] = (),
    seed: int = 0,
    on_invalid: str = "drop",
) -> CloudRows:
    """Describe the rows of many files; a file that cannot be read is a row with its error.

    Args:
        paths: A folder, a bucket or folder in it (s3://, gs://, hf:// and other URLs of fsspec), a file, or several.
        num_points: Draw this many points of every cloud; None keeps all points of point files.
        mesh_points: Points drawn from the surface of meshes when `num_points` is None.
        columns: Further columns: "normals", "colors" (0 to 255) and "labels"; a file without them is a bad one.
        seed: Seed of the points that are drawn, combined with the content of each file.
        on_invalid: "drop" leaves out points with NaN or infinite coordinates, "raise" makes their file a bad one.

    Raises:
        FileNotFoundError: There are no files.
        ValueError: An option out of range.
    """
    one_of("on_invalid", on_invalid, ("drop", "raise"))
    converter = CloudColumns(num_points, mesh_points, columns, seed)
    return CloudRows(tuple(list_files(paths)), converter, on_invalid)


def ask(
    rows: CloudRows,
    task: str,
    model: str | os.PathLike,
    *,
    column: str | None = None,
    batch_size: int = 8,
    keep_points: bool = False,
    **settings: Any,
) -> CloudRows:
    """Add the answers of a model to each cloud, by any task whose answers are a column of a table.

    Args:
        rows: Rows of `read_point_clouds`. The model gets each complete cloud, whatever its columns are.
        task: Name of a pipeline.
        model: Directory or hub name.
        column: Name of the column; by default that of the task.
        batch_size: Clouds that a process runs at a time.
        keep_points: Keep the columns of points too.
        settings: Settings of the task, see `hf_any3d.registry.TASKS[task].settings`.

    Raises:
        TypeError: A setting that the task does not have.
        ValueError: A setting out of range, a task without rows, a model that cannot be opened, or a column that
            exists.
        OSError: There is no such model.
    """
    record = TASKS[one_of("task", task, tuple(name for name, record in TASKS.items() if record.answers))]
    answers = record.answers_class()
    if answers.feature is Answers.feature:
        raise ValueError(f"task is {task!r}, whose answers are no column of a table")
    own = settings_of(record.settings)
    arguments: dict[str, Any] = {}
    feature = ""
    for name, value in settings.items():
        if name not in own:
            raise TypeError(f"{task} has no setting {name!r}; expected some of {', '.join(own)}")
        if reason := own[name].refused.get("many_files"):
            raise ValueError(f"{name}: {reason}")
        own[name].check(value)
        if own[name].argument is None:
            feature = value
        elif value is not None or own[name].none:
            arguments[own[name].argument or name] = value
    return _add(
        rows, Step(task, os.fspath(model), column or answers.column, arguments, feature, batch_size), keep_points
    )


def classify(
    rows: CloudRows,
    model: str | os.PathLike | None = None,
    *,
    top_k: int = 1,
    votes: int | None = None,
    up_axis: str | None = None,
    estimate_normals: bool = False,
    batch_size: int = 8,
    column: str = "predictions",
    keep_points: bool = False,
) -> CloudRows:
    """Add the best labels of a classifier, `[{"label": …, "score": …}, …]`, with `unknown` if it has such a score.

    Args:
        rows: Rows of `read_point_clouds`. The model gets each complete cloud, whatever its columns are.
        model: Directory or hub name; None for the classifier that comes with the package.
        top_k: Number of labels.
        votes: Answer by the mean of this many slightly stretched copies of each cloud.
        up_axis: Axis that points up in the files; by default nothing is turned.
        estimate_normals: Estimate normals of clouds that have none, for models that read them.
        batch_size: Clouds that a process runs at a time.
        column: Name of the column.
        keep_points: Keep the columns of points too.

    Raises:
        ValueError: An option out of range, a model that cannot be opened, or a column that exists.
        OSError: There is no such model.
    """
    from hf_any3d.pipelines import default_model

    name = default_model() if model is None else model
    named: dict[str, Any] = {"column": column, "batch_size": batch_size, "keep_points": keep_points}
    named |= {"estimate_normals": True} if estimate_normals else {}
    return ask(rows, CLASSIFICATION.name, name, **named, top_k=top_k, votes=votes, up_axis=up_axis)


def embed(
    rows: CloudRows,
    model: str | os.PathLike,
    *,
    feature: str = "pooled",
    up_axis: str | None = None,
    estimate_normals: bool = False,
    batch_size: int = 8,
    column: str = "features",
    keep_points: bool = False,
) -> CloudRows:
    """Add a vector of features `(features,)`, for search, clustering or heads.

    `model` may have any task, and `feature` is "pooled", "class_token", or "tokens" for the mean of the tokens;
    `classify` describes the other arguments and the errors.
    """
    named: dict[str, Any] = {"column": column, "batch_size": batch_size, "keep_points": keep_points}
    named |= {"estimate_normals": True} if estimate_normals else {}
    return ask(rows, FEATURES.name, model, **named, feature=feature, up_axis=up_axis)


def detect(
    rows: CloudRows,
    model: str | os.PathLike,
    *,
    threshold: float = 0.5,
    nms: str | None = "turned",
    nms_iou: float = 0.25,
    top_k: int | None = None,
    up_axis: str | None = None,
    estimate_normals: bool = False,
    batch_size: int = 8,
    column: str = "boxes",
    keep_points: bool = False,
) -> CloudRows:
    """Add the boxes of a detector, `[{"label": …, "score": …, "box": …}, …]` as its pipeline gives them.

    Boxes have at least a score of `threshold`; of two that overlap by more than `nms_iou` the likelier one stays, and
    of all the best `top_k`. What overlaps is `nms`: the "turned" boxes, their "bounds" along the axes, or the bounds'
    "base"; None leaves no box out. `classify` describes the other arguments and the errors.
    """
    settings: dict[str, Any] = {"threshold": threshold, "nms_iou": nms_iou, "top_k": top_k, "up_axis": up_axis}
    # By default it is not named, so that runs of earlier versions go on.
    if nms != "turned":
        settings["nms"] = nms
    named: dict[str, Any] = {"column": column, "batch_size": batch_size, "keep_points": keep_points}
    named |= {"estimate_normals": True} if estimate_normals else {}
    return ask(rows, DETECTION.name, model, **named, **settings)


def caption(
    rows: CloudRows,
    model: str | os.PathLike,
    *,
    text: str = "What is this?",
    max_new_tokens: int = 256,
    batch_size: int = 8,
    column: str = "caption",
    keep_points: bool = False,
    **generation: Any,
) -> CloudRows:
    """Add the answer of a chat model to one question about each cloud.

    `model` is a MiniGPT-3D, `text` the question, `max_new_tokens` the length of the longest answer, and `generation`
    further arguments of `generate`, such as `num_beams`; `classify` describes the other arguments and the errors.
    """
    from hf_any3d.tasks.chat.generation import GENERATION_KEYS
    from hf_any3d.tasks.steps import refuse_unknown

    # Wrong names are errors here, and not in each process.
    refuse_unknown({name: None for name in generation if name not in GENERATION_KEYS}, "arguments of generate")
    arguments = {"text": text, "max_new_tokens": max_new_tokens, **generation}
    return _add(rows, Step(CHAT.name, os.fspath(model), column, arguments, "", batch_size), keep_points)


def _add(rows: CloudRows, step: Step, keep_points: bool) -> CloudRows:
    from transformers import AutoConfig

    at_least(1, batch_size=step.batch_size)
    kept = replace(rows, steps=(*rows.steps, step), keep_points=rows.keep_points or keep_points)
    # A name that occurs twice makes fewer columns; the two are path and error.
    if len(kept.features) < len(kept.steps) + 2 + len(kept.converter.names) * kept.has_points:
        raise ValueError(f"column is {step.column!r}; expected a name that no other column has")
    with model_errors(step.model):  # here, and not in each process
        AutoConfig.from_pretrained(step.model)
        identified = replace(step, identity=model_fingerprint(step.model))
    # The fingerprint is part of the settings by which a run is continued.
    return replace(kept, steps=(*rows.steps, identified))


class _TableMaker:
    """Yields tables of rows, a few at a time, in a process of Ray."""

    def __init__(self, rows: CloudRows, workers: Workers):
        # Ray shows a process only the GPUs that it has given to it.
        self.features = rows.features
        self.run = rows.open("cuda" if workers.gpus else "cpu")
        # Only now, as opening the models has imported torch.
        limit_threads(workers.cpus)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[Any]:
        """Yield tables of the rows of some files."""
        from datasets import Dataset

        rows = self.run(os.fsdecode(batch["files"][0]).split("\0"))
        # A few at a time, as clouds may be large.
        while some := list(islice(rows, _ROWS_AT_A_TIME)):
            yield Dataset.from_list(some, features=self.features).data.table
