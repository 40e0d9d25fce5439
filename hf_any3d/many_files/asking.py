"""A pipeline that is asked about clouds in one way: results, rows and doubts of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hf_any3d.data.input_files import FILE_ERRORS, Cloud
from hf_any3d.many_files.work import answerer, caller, usual_batch_size
from hf_any3d.tasks.records import Task
from hf_any3d.utils.messages import one_line

if TYPE_CHECKING:
    from hf_any3d.tasks.answers import Doubt


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

        def again(up_axis: str) -> Any:
            # A cloud of its own, so that a note is not told for each axis.
            (turned,) = self._runner(self.arguments | {"up_axis": up_axis})([Cloud(cloud.name, cloud.data)])
            return None if isinstance(turned, dict) and "error" in turned else turned

        doubt = self.answers.doubt(cloud.data, result, again)
        text = None if doubt is None else f"{cloud.name}: {self.words_of_doubt(doubt)}"
        # The pipeline may have warned of the same.
        if text is not None and text not in cloud.warnings:
            cloud.warnings.append(text)
