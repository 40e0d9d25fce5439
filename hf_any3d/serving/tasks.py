"""Routes of the service, made from tasks: settings of requests, and answers of a pipeline to batches of clouds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from hf_any3d.data.files import PointCloudData
from hf_any3d.registry import TASKS
from hf_any3d.serving.limits import Refused, ServeLimits
from hf_any3d.tasks.chat.about import TASK as CHAT_TASK
from hf_any3d.tasks.segmentation.about import TASK as SEGMENTATION
from hf_any3d.tasks.settings import pipeline_arguments, settings_of

CHAT = CHAT_TASK.name
SEGMENT_PATH, FILE_PATH = str(SEGMENTATION.route), f"{SEGMENTATION.route}/file"
TASKS_OF: dict[str, list[str]] = {}
"""Path of a route -> tasks of the models that it serves."""
for _name, _task in TASKS.items():
    if _task.route is not None:
        TASKS_OF.setdefault(_task.route, []).append(_name)
SERVED = (*(task for tasks in TASKS_OF.values() for task in tasks), CHAT)
"""Tasks of the models that can be served."""


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


# Fields of forms are texts, in which commas separate labels.
Labels = Annotated[tuple[str, ...], BeforeValidator(_split)]


class Settings(BaseModel):
    """Settings of a request; requests with equal settings are processed together."""

    # Frozen settings can be hashed, and requests are gathered by them.
    model_config = ConfigDict(extra="forbid", frozen=True)


def _request(path: str, **further: Any) -> type[Settings]:
    """Make the settings of a route from those of its tasks, and `further` ones of its answers."""
    fields: dict[str, Any] = {}
    for task in TASKS_OF[path]:
        for own in settings_of(TASKS[task].settings, "service").values():
            kind = own.type
            # Texts of forms are split at commas.
            if tuple[str, ...] in get_args(kind):
                kind = Union[tuple(Labels if part == tuple[str, ...] else part for part in get_args(kind))]  # noqa: UP007
            text = f"{own.help} null: {own.none}." if own.none else own.help
            described = Field(own.default_at("service"), ge=own.low, le=own.high, description=text)
            fields.setdefault(own.name, (kind, described))
    name = "".join(word.capitalize() for word in path.rpartition("/")[2].split("-"))
    return create_model(f"{name}Settings", __base__=Settings, __doc__=f"Settings of `{path}`.", **fields, **further)


_ENCODINGS = "base64: labels as little-endian int32, scores and points as float32, noise as bytes."
# How the points of a large answer are sent is nothing that other doors ask for.
_FURTHER = {
    SEGMENT_PATH: {
        "scores": (bool, Field(False, description="Whether to return the probability of each point's label.")),
        "encoding": (Literal["list", "base64"], Field("list", description=_ENCODINGS)),
    }
}
SETTINGS_OF = {path: _request(path, **_FURTHER.get(path, {})) for path in TASKS_OF}
"""Path of a route -> settings of its requests."""


@dataclass(frozen=True)
class Route:
    """A route of a service: a pipeline with its settings."""

    path: str
    task: str
    pipe: Any
    settings: type[Settings]

    def check(self, settings: Any, limits: ServeLimits) -> None:
        """Check settings that fit other models, and their number."""
        # Each label is a text to encode, or a column of scores.
        labels = getattr(settings, "labels", None)
        if labels is not None and len(labels) > limits.labels:
            raise Refused(400, f"labels: {len(labels)}; expected at most {limits.labels}", param="labels")
        # What the pipeline would refuse is refused before it waits in the queue.
        try:
            self.pipe._sanitize_parameters(**self.answers(settings).arguments)
        except (ValueError, TypeError) as error:
            raise Refused(400, str(error)) from None

    def run(self, settings: Any, clouds: list[PointCloudData], batch_size: int) -> list[Any]:
        """Answer for a batch of clouds; an exception in the result is that of a single cloud."""
        answers = self.answers(settings)
        arguments = {**answers.arguments, **answers.for_doubts}
        results = run_each(self.pipe, clouds, batch_size, arguments)
        return [self._shown(answers, cloud, result) for cloud, result in zip(clouds, results, strict=True)]

    def answers(self, settings: Any) -> Any:
        """Return the answers to requests with these settings."""
        given = settings.model_dump()
        record = TASKS[self.task]
        answers = record.answers_class()(self.pipe, record.settings, given, "service")
        for other in TASKS_OF[self.path]:
            # What is asked of the other task of the route reaches the pipeline, too, which refuses it.
            if other != self.task:
                asked = pipeline_arguments(TASKS[other].settings, given, "service")
                asked = {name: value for name, value in asked.items() if value is not None}
                answers.arguments = asked | answers.arguments
        return answers

    def _shown(self, answers: Any, cloud: PointCloudData, result: Any) -> Any:
        if isinstance(result, Exception):
            return result

        def again(data: PointCloudData, up_axis: str) -> Any:
            arguments = {**answers.arguments, **answers.for_doubts, "up_axis": up_axis}
            (other,) = run_each(self.pipe, [data], 1, arguments)
            return None if isinstance(other, Exception) else other

        try:
            shown = answers.plain(result, cloud)
        # Returned, not raised, since it is the answer of one cloud of a batch
        except ValueError as error:
            return Refused(400, str(error), param=str(error).partition(":")[0])
        processor = getattr(self.pipe, "feature_extractor", None)
        if processor is not None and processor.estimates(cloud, answers.arguments.get("estimate_normals")):
            shown = {**shown, "normals": "estimated"}
        doubt = answers.doubt(cloud, result, again)
        return shown if doubt is None else {**shown, "doubt": str(doubt)}


def routes_of(task: str, pipe: Any) -> list[Route]:
    """Return the routes of a model that is not a chat model; all of them share its weights."""
    path = str(TASKS[task].route)
    routes = [Route(path, task, pipe, SETTINGS_OF[path])]
    # A model that writes answers reads clouds with words alone.
    if getattr(pipe, "feature_extractor", None) is None:
        return routes
    for other, record in TASKS.items():
        if record.route is not None and TASKS[task].command in record.also and record.takes(pipe.model):
            # The same model object, so that its weights are in memory once
            kind = record.pipeline_class()
            try:
                also = kind(model=pipe.model, feature_extractor=pipe.feature_extractor, device=pipe.device, task=other)
            except ValueError:  # of a task that is not for models of objects
                continue
            routes.append(Route(record.route, other, also, SETTINGS_OF[record.route]))
    return routes


def run_each(pipe: Any, clouds: Sequence[PointCloudData], batch_size: int, arguments: dict[str, Any]) -> list[Any]:
    """Run a pipeline on clouds; after an error each is run alone, and an exception is the answer of its cloud."""
    try:
        return list(pipe(list(clouds), batch_size=min(batch_size, len(clouds)), progress=False, **arguments))
    except Exception as error:
        if len(clouds) == 1:
            return [error]
        # One cloud must not spoil the answers of others that happened to share its batch.
        return [answer for cloud in clouds for answer in run_each(pipe, [cloud], 1, arguments)]
