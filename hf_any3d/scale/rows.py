"""Rows of many clouds, described now and computed later: read, classified, embedded, captioned."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hf_any3d.data.file_conversion import CloudColumns
from hf_any3d.data.files import PointCloudData
from hf_any3d.identity import model_identity
from hf_any3d.messages import model_errors, one_line
from hf_any3d.scale.cluster import Attempts, Workers, start
from hf_any3d.scale.files import list_files, read_file

if TYPE_CHECKING:
    import ray.data
    from datasets import Features

# Errors of a file, after which the next one is read.
FILE_ERRORS = (ValueError, OSError, ImportError)
_FEATURES = ("pooled", "class_token", "tokens")
_FILES_AT_A_TIME = 64


@dataclass(frozen=True)
class Step:
    """A pipeline that adds a column.

    Attributes:
        task: Task of the pipeline.
        model: Directory or hub name.
        column: Name of the column.
        arguments: Arguments of a call.
        feature: Of a feature extraction: the feature to keep.
        batch_size: Clouds per call.
        identity: Of the model, see `model_identity`; rows of another one are no continuation.
    """

    task: str
    model: str
    column: str
    arguments: dict[str, Any] = field(default_factory=dict)
    feature: str = ""
    batch_size: int = 8
    identity: str = ""

    def open(self, workers: Workers) -> Callable[[list[dict[str, Any]]], list[Any]]:
        """Open the model and return a function from clouds to values of the column; errors stand for bad clouds."""
        import torch
        from transformers import pipeline

        from hf_any3d.registration import register

        register()
        torch.set_num_threads(max(1, int(workers.cpus)))
        open_task: Any = pipeline  # typed for tasks of transformers alone
        with model_errors(self.model):
            # Without a GPU of its own, a process must not take that of another.
            pipe = open_task(self.task, model=self.model, device=0 if workers.gpus else "cpu", trust_remote_code=False)
        depends = getattr(pipe.model.config, "batch_dependent_flags", None)
        size = 1 if depends else self.batch_size

        def call(clouds: list[dict[str, Any]]) -> list[Any]:
            with torch.inference_mode():
                answers = pipe(clouds, batch_size=size, progress=False, **self.arguments)
            return [self._value(answer) for answer in answers]

        def answer(clouds: list[dict[str, Any]]) -> list[Any]:
            try:
                return call(clouds)
            except FILE_ERRORS as error:
                if len(clouds) == 1:
                    return [error]
                return [value for cloud in clouds for value in answer([cloud])]

        return answer

    def _value(self, answer: Any) -> Any:
        if self.task == "point-cloud-classification":
            return [{"label": one["label"], "score": float(one["score"])} for one in answer]
        if self.task == "point-cloud-text-to-text":
            return answer[0]["generated_text"]
        if self.feature not in answer:
            raise ValueError(f"{self.model}: has no feature {self.feature!r}; expected pooled or tokens")
        return answer[self.feature].mean(axis=0) if self.feature == "tokens" else answer[self.feature]

    @property
    def type(self) -> Any:
        """Type of the column in `datasets`."""
        from datasets import List, Value

        if self.task == "point-cloud-classification":
            return List({"label": Value("string"), "score": Value("float32")})
        return Value("string") if self.task == "point-cloud-text-to-text" else List(Value("float32"))


@dataclass(frozen=True)
class CloudRows:
    """Rows of point clouds, one for each file; nothing is computed before they are iterated or written.

    A row has `path`, `points (points, 3)` and the other columns of `read_point_clouds`, or instead of them those of
    `classify`, `embed` and `caption`; and `error`, None for a good file. A bad file has None in all other columns.

    Attributes:
        files: The files.
        converter: The columns of points.
        on_invalid: What is done about NaN and infinite coordinates.
        steps: The models that are run.
        keep_points: Whether the columns of points are kept where models are run.
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

        points = self.converter.features if self.has_points else {}
        answers = {step.column: step.type for step in self.steps}
        return Features({"path": Value("string"), **points, **answers, "error": Value("string")})

    @property
    def settings(self) -> dict[str, Any]:
        """All that determines a row besides its file, as values of JSON."""
        converter = {**asdict(self.converter), "columns": list(self.converter.columns)} if self.has_points else None
        steps = [asdict(step) for step in self.steps]
        for step in steps:
            del step["batch_size"]
        return {"points": converter, "on_invalid": self.on_invalid, "steps": steps}

    def open(self, workers: Workers | None = None) -> Callable[[Sequence[str], Attempts], Iterator[dict[str, Any]]]:
        """Open the models in this process and return a function that yields the row of each file, in their order.

        Args:
            workers: What this process may use; by default one CPU.
        """
        answers = {step.column: step.open(workers or Workers()) for step in self.steps}
        names = self.features

        def rows(files: Sequence[str], attempts: Attempts) -> Iterator[dict[str, Any]]:
            size = 1 if attempts.is_careful else max([step.batch_size for step in self.steps], default=1)
            for begin in range(0, len(files), size):
                batch = [self._read(file, attempts) for file in files[begin : begin + size]]
                for column, answer in answers.items():
                    good = [row for row in batch if "error" not in row]
                    clouds = [{"points": row["cloud"], "path": row["path"]} for row in good]
                    for row, value in zip(good, answer(clouds) if clouds else [], strict=True):
                        if isinstance(value, Exception):
                            row["error"] = _with_name(row["path"], value)
                        else:
                            row[column] = value
                for row in batch:
                    bad = "error" in row
                    yield {name: None if bad and name not in ("path", "error") else row.get(name) for name in names}

        return rows

    def dataset(self, workers: Workers | None = None) -> ray.data.Dataset:
        """Return the rows as a dataset of Ray, for further steps of its own.

        Columns of points have the type Array2D of `datasets`, which Ray hands over as arrays.

        Args:
            workers: The processes that compute them; by default one on each CPU but one, which is left to other steps.

        Raises:
            ImportError: Ray is not installed.
        """
        ray = start()
        parts = [self.files[n : n + _FILES_AT_A_TIME] for n in range(0, len(self.files), _FILES_AT_A_TIME)]
        workers = workers or Workers()
        resources = dict(ray.cluster_resources())
        count = workers.number_in(resources, len(parts))
        if workers.count is None and count > 1:
            count -= 1
        # Processes that hold all CPUs would keep other steps from ever starting.
        cpus = workers.cpus if count * workers.cpus < resources["CPU"] else workers.cpus * 0.9
        return ray.data.from_items(
            [{"files": "\n".join(part)} for part in parts], override_num_blocks=len(parts)
        ).map_batches(
            _TableMaker,
            fn_constructor_args=(replace(self, files=()), workers),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            num_cpus=cpus,
            num_gpus=workers.gpus,
        )

    def _read(self, file: str, attempts: Attempts) -> dict[str, Any]:
        row: dict[str, Any] = {"path": file}
        if (error := attempts.begin(file)) is not None:
            return {**row, "error": error}
        try:
            cloud: PointCloudData = read_file(file, self.on_invalid)
            if self.has_points:
                row |= self.converter.row(cloud)
            if self.steps:
                row["cloud"] = cloud
        except FILE_ERRORS as error:
            row["error"] = _with_name(file, error)
        return row


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
    if on_invalid not in ("drop", "raise"):
        raise ValueError(f"on_invalid is {on_invalid!r}; expected 'drop' or 'raise'")
    converter = CloudColumns(num_points, mesh_points, tuple(columns), seed)
    return CloudRows(tuple(list_files(paths)), converter, on_invalid)


def classify(
    rows: CloudRows,
    model: str | os.PathLike | None = None,
    *,
    top_k: int = 1,
    up_axis: str | None = None,
    batch_size: int = 8,
    column: str = "predictions",
    keep_points: bool = False,
) -> CloudRows:
    """Add the best labels of a classifier, `[{"label": …, "score": …}, …]`.

    Args:
        rows: Rows of `read_point_clouds`. The model gets each complete cloud, whatever its columns are.
        model: Directory or hub name; None for the classifier that comes with the package.
        top_k: Number of labels.
        up_axis: Axis that points up in the files; by default nothing is turned.
        batch_size: Clouds that a process runs at a time.
        column: Name of the column.
        keep_points: Keep the columns of points too.

    Raises:
        ValueError: An option out of range, a model that cannot be opened, or a column that exists.
        OSError: There is no such model.
    """
    from hf_any3d.pipelines import default_model
    from hf_any3d.pipelines.base import check_top_k

    check_top_k(top_k)
    name = default_model() if model is None else os.fspath(model)
    arguments = _given(top_k=top_k, up_axis=up_axis)
    return _add(rows, Step("point-cloud-classification", name, column, arguments, "", batch_size), keep_points)


def embed(
    rows: CloudRows,
    model: str | os.PathLike,
    *,
    feature: str = "pooled",
    up_axis: str | None = None,
    batch_size: int = 8,
    column: str = "features",
    keep_points: bool = False,
) -> CloudRows:
    """Add a vector of features `(features,)`, for search, clustering or heads.

    Args:
        rows: See `classify`.
        model: Directory or hub name of a model of any task.
        feature: "pooled", "class_token", or "tokens" for the mean of the tokens.
        up_axis: See `classify`.
        batch_size: See `classify`.
        column: See `classify`.
        keep_points: See `classify`.

    Raises:
        ValueError: See `classify`.
        OSError: There is no such model.
    """
    if feature not in _FEATURES:
        raise ValueError(f"feature is {feature!r}; expected one of {', '.join(_FEATURES)}")
    arguments = _given(up_axis=up_axis)
    step = Step("point-cloud-feature-extraction", os.fspath(model), column, arguments, feature, batch_size)
    return _add(rows, step, keep_points)


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

    Args:
        rows: See `classify`.
        model: Directory or hub name of a MiniGPT-3D.
        text: The question.
        max_new_tokens: Longest answer.
        batch_size: See `classify`.
        column: See `classify`.
        keep_points: See `classify`.
        **generation: Other arguments of `generate`, such as `num_beams`.

    Raises:
        ValueError: See `classify`.
        TypeError: An argument that `generate` does not have.
        OSError: There is no such model.
    """
    from hf_any3d.chat.generation import GENERATION_KEYS
    from hf_any3d.pipelines.base import refuse_unknown

    refuse_unknown({name: None for name in generation if name not in GENERATION_KEYS}, "arguments of generate")
    arguments = {"text": text, "max_new_tokens": max_new_tokens, **generation}
    step = Step("point-cloud-text-to-text", os.fspath(model), column, arguments, "", batch_size)
    return _add(rows, step, keep_points)


def _add(rows: CloudRows, step: Step, keep_points: bool) -> CloudRows:
    from transformers import AutoConfig

    if step.batch_size < 1:
        raise ValueError(f"batch_size is {step.batch_size}; expected at least 1")
    kept = replace(rows, steps=(*rows.steps, step), keep_points=rows.keep_points or keep_points)
    if len(kept.features) < len(kept.steps) + 2 + len(kept.converter.names) * kept.has_points:
        raise ValueError(f"column is {step.column!r}; expected a name that no other column has")
    with model_errors(step.model):  # here, and not in each process
        AutoConfig.from_pretrained(step.model)
        identified = replace(step, identity=model_identity(step.model))
    return replace(kept, steps=(*rows.steps, identified))


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _with_name(name: str, error: Exception) -> str:
    text = one_line(error)
    return text if os.path.basename(name) in text else f"{name}: {text}"


class _TableMaker:
    """Yields tables of rows, a few at a time, in a process of Ray."""

    def __init__(self, rows: CloudRows, workers: Workers):
        self.features, self.run = rows.features, rows.open(workers)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[Any]:
        """Yield tables of the rows of some files."""
        from datasets import Dataset

        rows = []
        for row in self.run(str(batch["files"][0]).split("\n"), Attempts()):
            rows.append(row)
            if len(rows) == 16:
                yield Dataset.from_list(rows, features=self.features).data.table
                rows = []
        if rows:
            yield Dataset.from_list(rows, features=self.features).data.table
