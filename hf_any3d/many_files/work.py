"""Work of one process on files: models are opened once, and each file gets a row, with answers or its error."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hf_any3d.data.input_files import FILE_ERRORS, Cloud, InputFile, with_name
from hf_any3d.utils.atomic_files import is_full, read_json_object
from hf_any3d.utils.messages import model_errors, one_line

_SHOWN: dict[Any, int] = {}  # what has been warned of

Answer = Callable[[list[Cloud]], list[dict[str, Any]]]
"""Function of some clouds that returns the row of each, which may be `{"error": …}`."""


class Shard(NamedTuple):
    """Files that a process gets at a time, and the name of what it may write for them."""

    name: str
    files: tuple[str, ...]


class Work(Protocol):
    """The work of one process; it is pickled."""

    def open(self) -> Callable[[Shard], Iterable[Any]]:
        """Open models and return the function from a shard to its results."""
        ...

    def given_up(self, shard: Shard, error: str) -> Iterable[Any]:
        """Return the results of a shard of one file that has ended the processes that had it."""
        ...


def cut(files: Sequence[str], size: int, first: int = 0) -> list[Shard]:
    """Cut a list of files into shards, which are numbered from `first` on."""
    starts = range(0, len(files), size)
    return [Shard(f"{number:05d}", tuple(files[start : start + size])) for number, start in enumerate(starts, first)]


def answer_files(
    files: Sequence[InputFile],
    answer: Answer,
    batch_size: int = 1,
    *,
    read: Callable[[InputFile], Cloud] = InputFile.read,
    raise_errors: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield `{"file": …, **answer}` or `{"file": …, "error": …}` for each file, in their order, with its `warnings`.

    If `answer` raises an error for several clouds, it is called for each alone. With `raise_errors` the error of a
    file is raised.
    """
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        # By number, since unreadable files get their rows at once and all others together.
        rows: dict[int, dict[str, Any]] = {}
        clouds: dict[int, Cloud] = {}
        for number, file in enumerate(batch):
            try:
                clouds[number] = read(file)
            except FILE_ERRORS as error:
                if raise_errors:
                    raise
                rows[number] = {"error": with_name(file.name, error)}
        for number, row in zip(clouds, _answer(answer, list(clouds.values()), raise_errors), strict=True):
            notes = clouds[number].warnings
            rows[number] = row | ({"warnings": notes} if notes else {})
        # In the order of the files again, whether they were read or not.
        for number, file in enumerate(batch):
            yield {"file": file.name, **rows[number]}


def _answer(answer: Answer, clouds: list[Cloud], raise_errors: bool) -> list[dict[str, Any]]:
    if not clouds:
        return []
    try:
        with warnings.catch_warnings(record=True) as caught:
            rows = answer(clouds)
    except FILE_ERRORS as error:
        # No file is at fault, and none is done: the same command continues once there is room.
        if is_full(error):
            raise
        # One bad cloud may spoil a batch, so each is tried alone to find it.
        if len(clouds) > 1:
            return [row for cloud in clouds for row in _answer(answer, [cloud], raise_errors)]
        text = with_name(clouds[0].name, error)
        # An error that names its file already is kept as it is.
        if raise_errors and text == one_line(error):
            raise
        if raise_errors:  # an error about a cloud that was read does not know its file
            raise ValueError(text) from error
        return [{"error": text}]
    for warning in caught:
        message: Any = warning.message
        # Those of other categories, `ModelWarning` among them, are not about a file.
        if warning.category is not UserWarning:
            # Python shows one with its registry once, and not for each batch.
            warnings.warn_explicit(message, warning.category, warning.filename, warning.lineno, registry=_SHOWN)
        elif len(clouds) == 1:
            clouds[0].warnings.append(with_name(clouds[0].name, message))
        else:
            # The pipeline does not say which of the clouds it means.
            names = ", ".join(cloud.name for cloud in clouds)
            clouds[0].warnings.append(f"one of {names}: {one_line(message)}")
    return rows


class Opened(NamedTuple):
    """A function of clouds, how many it takes at a time, and further columns that are read for it."""

    answer: Answer
    batch_size: int
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowsWork:
    """Work whose results are the rows of `answer_files`.

    `open_answer` opens the models and returns the fields of `Opened`. Names are relative to
    `folder`, where the run was started; `given` is standard input, which is read in one process alone. With
    `are_copied`, `open_answer` writes a labeled copy of each file; `file_type` is that of all.
    """

    open_answer: Callable[[], tuple[Answer, int] | Opened]
    folder: str = field(default_factory=os.getcwd)
    given: Mapping[str, InputFile] = field(default_factory=dict)
    are_copied: bool = False
    file_type: str | None = None

    def open(self) -> Callable[[Shard], Iterator[dict[str, Any]]]:
        """Open the models and return the function from a shard to its rows."""
        # Names are relative to the folder of the program, and a process may start elsewhere.
        os.chdir(self.folder)
        opened = Opened(*self.open_answer())  # pyright: ignore[reportArgumentType]  two or three of its fields

        def rows(shard: Shard) -> Iterator[dict[str, Any]]:
            # Standard input cannot be opened by its name.
            files = [self.given.get(name, InputFile(name, None, self.file_type)) for name in shard.files]
            files = [replace(file, columns=opened.columns, is_copied=self.are_copied) for file in files]
            return answer_files(files, opened.answer, opened.batch_size)

        return rows

    def given_up(self, shard: Shard, error: str) -> list[dict[str, Any]]:
        """Return the row of a file that ends processes."""
        return [{"file": shard.files[0], "error": error}]


def open_pipeline(task: str, model: str, device: Any) -> Any:
    """Open a directory or hub repository as a pipeline, on the fastest device if `device` is None.

    Raises:
        FileNotFoundError: If the name looks like a path, and nothing is there.
        ValueError: If the processor of a directory does not name its class.
    """
    from transformers import pipeline

    from hf_any3d.hub.names import check_name
    from hf_any3d.integration.registration import register

    # `pipeline` finds only tasks and classes that are registered.
    register()
    check_name(model)
    _check_processor_file(Path(model, "preprocessor_config.json"))
    open_task: Any = pipeline  # typed for tasks of transformers alone
    with model_errors(model):
        return open_task(task, model=model, device=device, trust_remote_code=False)


def _check_processor_file(file: Path) -> None:
    """Check that a stored processor names its class; without, transformers asks to run the code of its `auto_map`."""
    if not file.is_file():
        return
    settings = read_json_object(file)
    if settings.get("auto_map") and not settings.get("feature_extractor_type"):
        expected = settings.get("processor_class") or "PointCloudProcessor"
        raise ValueError(f"{file}: lacks feature_extractor_type; expected the name of its class, such as {expected!r}")


def answerer(pipe: Any, model: str, **arguments: Any) -> Callable[[list[Cloud]], list[Any]]:
    """Return a function that runs a pipeline on a batch of clouds.

    It returns an answer for each, or `{"error": …}` where the model's output is unusable.
    """
    import torch

    arguments = {name: value for name, value in arguments.items() if value is not None}
    # The three steps of a pipeline are run one by one, so that errors and warnings belong to a cloud.
    before, during, after = pipe._sanitize_parameters(**arguments)

    def run(clouds: list[Cloud]) -> list[Any]:
        inputs = []
        for cloud in clouds:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                inputs.append(pipe.preprocess(cloud.row, **before))
            cloud.warnings += [with_name(cloud.name, warning.message) for warning in caught]
        # `preprocess` has brought all clouds to the same number of points.
        points = torch.cat([entry["points"] for entry in inputs])  # (files, num_points, channels)
        stems = [entry["stem"][0] for entry in inputs]
        with model_errors(model, "cannot answer"):
            outputs = pipe.forward({"points": points, "stem": stems}, **during)
        results: list[Any] = []
        for number in range(len(clouds)):
            # A batch of one, which `postprocess` expects.
            one = {name: values[number : number + 1] for name, values in outputs.items()}
            try:
                results.append(pipe.postprocess(one, **after))
            except FILE_ERRORS as error:
                if len(clouds) == 1:
                    raise
                results.append({"error": one_line(error)})
        return results

    return run


def caller(pipe: Any, model: str, **arguments: Any) -> Callable[[list[Cloud]], list[Any]]:
    """Return a function that calls a pipeline with a batch of clouds, each of which it may read in several parts."""
    with model_errors(model, "cannot answer"):  # arguments of other models are an error before any file is read
        pipe._sanitize_parameters(**arguments)

    def run(clouds: list[Cloud]) -> list[Any]:
        rows = [cloud.row for cloud in clouds]
        with model_errors(model, "cannot answer"):
            return pipe(rows, batch_size=len(rows), progress=False, **arguments)

    return run


def usual_batch_size(pipe: Any, wanted: int = 8) -> int:
    """Return a batch size, or 1 for a model whose predictions depend on the other clouds of a batch."""
    from hf_any3d.modeling.layers.forward_contract import batch_dependent_flags

    return 1 if batch_dependent_flags(pipe.model) else wanted
