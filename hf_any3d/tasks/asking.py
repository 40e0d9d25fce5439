"""A pipeline that is asked about clouds in one way: results, rows and doubts of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hf_any3d.data.checks.scan_checksums import checksum_of_points, learned_checksums
from hf_any3d.data.files.input_files import FILE_ERRORS, Cloud, with_name
from hf_any3d.tasks.records import Task
from hf_any3d.utils.messages import model_errors, one_line

if TYPE_CHECKING:
    from hf_any3d.data.files import PointCloudData
    from hf_any3d.tasks.answers import Doubt

LEARNED = "the model was trained on this scan; its accuracy on new scans is on its card"


class Asked:
    """Answers of a model to clouds, by settings of its task.

    Args:
        pipe: The pipeline.
        model: Name of the model in messages.
        task: Record of the task.
        values: Settings by their names.
        door: Where it is asked.
        on_page: Whether people may look at more than what is asked for.
        further: Arguments of calls that are no settings, such as those of `generate`.
        words_of_doubt: Function from a doubt to the warning of its cloud; None where nobody would see it, as the model
            may run again for one.
    """

    def __init__(
        self,
        pipe: Any,
        model: str,
        task: Task,
        values: Mapping[str, Any],
        door: str,
        *,
        on_page: bool = False,
        further: Mapping[str, Any] | None = None,
        words_of_doubt: Callable[[Doubt], str] | None = None,
    ):
        self.pipe = pipe
        self.model = model
        self.words_of_doubt = words_of_doubt
        self.answers = task.answers_class()(pipe, task.settings, values, door, on_page=on_page)
        # Models that may read a cloud in several parts are called as a whole; others run a batch in one pass.
        self.is_whole: bool = self.answers.is_called_whole
        self.arguments: dict[str, Any] = {**self.answers.arguments, **(further or {})}
        if words_of_doubt is not None:
            self.arguments |= self.answers.for_doubts
        self._run = self._runner(self.arguments)
        self._learned = learned_checksums(model)

    @property
    def batch_size(self) -> int:
        """Usual number of clouds in a batch."""
        return usual_batch_size(self.pipe)

    def _runner(self, arguments: dict[str, Any]) -> Callable[[list[Cloud]], list[Any]]:
        return (caller if self.is_whole else answerer)(self.pipe, self.model, **arguments)

    def results(self, clouds: list[Cloud]) -> list[dict[str, Any]]:
        """Return for each cloud its `result` and `row`, or `{"error": …}`; doubts are among the cloud's warnings."""
        found = []
        for cloud, result in zip(clouds, self._run(clouds), strict=True):
            if isinstance(result, dict) and "error" in result:
                found.append(result)
                continue
            try:
                row = self.answers.row(result)
                self._tell_doubt(cloud, result)
                if self._learned and checksum_of_points(cloud.data.points) in self._learned:
                    cloud.warnings.append(f"{cloud.name}: {LEARNED}")
            except FILE_ERRORS as error:
                # Of several clouds the others keep their answers.
                if len(clouds) == 1:
                    raise
                found.append({"error": one_line(error)})
                continue
            found.append({"result": result, "row": row})
        return found

    def rows(self, clouds: list[Cloud]) -> list[dict[str, Any]]:
        """Return the row of each cloud, or `{"error": …}`."""
        return [found if "error" in found else found["row"] for found in self.results(clouds)]

    def _tell_doubt(self, cloud: Cloud, result: Any) -> None:
        if self.words_of_doubt is None:
            return

        def again(data: PointCloudData, up_axis: str) -> Any:
            # A cloud of its own, so that a note is not told for each axis.
            (other,) = self._runner(self.arguments | {"up_axis": up_axis})([Cloud(cloud.name, data)])
            return None if isinstance(other, dict) and "error" in other else other

        doubt = self.answers.doubt(cloud.data, result, again)
        text = None if doubt is None else f"{cloud.name}: {self.words_of_doubt(doubt)}"
        # The pipeline may have warned of the same.
        if text is not None and text not in cloud.warnings:
            cloud.warnings.append(text)


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
        batch: dict[str, Any] = {
            name: torch.cat([entry[name] for entry in inputs]) for name in inputs[0] if name != "stem"
        }
        batch["stem"] = [entry["stem"][0] for entry in inputs]
        with model_errors(model, "cannot answer"):
            outputs = pipe.forward(batch, **during)
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
    from hf_any3d.modeling.layers.modes import batch_dependent_flags

    return 1 if batch_dependent_flags(pipe.model) else wanted
