"""Tasks of the service: settings of requests, and answers of a pipeline to batches of clouds."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from hf_any3d.data.files import PointCloudData
from hf_any3d.pipelines import PointCloudFeatureExtractionPipeline
from hf_any3d.serving.limits import Refused, ServeLimits
from hf_any3d.tasks import SETTINGS, pipeline_arguments, settings_of

CHAT = "point-cloud-text-to-text"
CLASSIFY, ZERO_SHOT = "point-cloud-classification", "zero-shot-point-cloud-classification"
SEGMENT, PARTS_BY_NAME = "point-cloud-segmentation", "zero-shot-point-cloud-segmentation"
DETECT, FEATURES = "point-cloud-object-detection", "point-cloud-feature-extraction"
CLASSIFY_PATH, DETECT_PATH, FEATURES_PATH = "/v1/classify", "/v1/detect", "/v1/features"
SEGMENT_PATH, FILE_PATH = "/v1/segment", "/v1/segment/file"
TASKS_OF = {
    CLASSIFY_PATH: (CLASSIFY, ZERO_SHOT),
    DETECT_PATH: (DETECT,),
    SEGMENT_PATH: (SEGMENT, PARTS_BY_NAME),
    FEATURES_PATH: (FEATURES,),
}
"""Path of a route -> tasks of the models that it serves."""
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


def _request(name: str, path: str, **further: Any) -> type[Settings]:
    """Make the settings of a route from those of its tasks, and `further` ones of its answers."""
    fields: dict[str, Any] = {}
    for task in TASKS_OF[path]:
        for own in settings_of(SETTINGS[task], "service").values():
            kind = own.type
            # Texts of forms are split at commas.
            if tuple[str, ...] in get_args(kind):
                kind = Union[tuple(Labels if part == tuple[str, ...] else part for part in get_args(kind))]  # noqa: UP007
            described = Field(own.default_at("service"), ge=own.low, le=own.high, description=own.help)
            fields.setdefault(own.name, (kind, described))
    return create_model(name, __base__=Settings, __doc__=f"Settings of `{path}`.", **fields, **further)


ClassifySettings = _request("ClassifySettings", CLASSIFY_PATH)
FeatureSettings = _request("FeatureSettings", FEATURES_PATH)
DetectSettings = _request("DetectSettings", DETECT_PATH)
_ENCODINGS = "base64: labels as little-endian int32, scores and points as float32, noise as bytes."
SegmentSettings = _request(
    "SegmentSettings",
    SEGMENT_PATH,
    scores=(bool, Field(False, description="Whether to return the probability of each point's label.")),
    encoding=(Literal["list", "base64"], Field("list", description=_ENCODINGS)),
)
SETTINGS_OF = {
    CLASSIFY_PATH: ClassifySettings,
    DETECT_PATH: DetectSettings,
    SEGMENT_PATH: SegmentSettings,
    FEATURES_PATH: FeatureSettings,
}
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
            self.pipe._sanitize_parameters(**self._arguments(settings))
        except (ValueError, TypeError) as error:
            raise Refused(400, str(error)) from None

    def run(self, settings: Any, clouds: list[PointCloudData], batch_size: int) -> list[Any]:
        """Answer for a batch of clouds; an exception in the result is that of a single cloud."""
        arguments = self._arguments(settings)
        answers = run_each(self.pipe, clouds, batch_size, arguments)
        return [
            answer if isinstance(answer, Exception) else self._shown(settings, cloud, answer)
            for cloud, answer in zip(clouds, answers, strict=True)
        ]

    def _arguments(self, settings: Any) -> dict[str, Any]:
        """Return the settings as arguments of the pipeline."""
        given = settings.model_dump()
        arguments: dict[str, Any] = {}
        for other in TASKS_OF[self.path]:
            # What is asked of the other task of the route reaches the pipeline, too, which refuses it.
            asked = pipeline_arguments(SETTINGS[other], given, "service")
            arguments |= {name: value for name, value in asked.items() if other == self.task or value is not None}
        if "text_embeds" in arguments:
            # (labels, width)
            arguments["text_embeds"] = np.array(arguments["text_embeds"], dtype=np.float32)
        return arguments

    def _shown(self, settings: Any, cloud: PointCloudData, answer: Any) -> Any:
        if self.path == CLASSIFY_PATH:
            return {"labels": answer}
        if self.path == DETECT_PATH:
            return {"boxes": answer}
        if self.path == FEATURES_PATH:
            if settings.feature not in answer:
                features = ", ".join(name for name in ("pooled", "class_token", "tokens") if name in answer)
                # Returned, not raised, since it is the answer of one cloud of a batch
                return Refused(
                    400, f"feature: this model has no {settings.feature}; expected {features}", param="feature"
                )
            shown = {settings.feature: answer[settings.feature].tolist()}
            return shown | ({"centers": answer["centers"].tolist()} if settings.feature == "tokens" else {})
        # The types that the description of `encoding` promises
        arrays = {"labels": answer["labels"].astype("<i4")}
        if settings.scores:
            arrays["scores"] = answer["scores"].astype("<f4")
        if "noise" in answer:
            arrays["noise"] = answer["noise"]
        if cloud.is_mesh:  # labels are those of points on its surface, which the client does not have
            arrays["points"] = answer["points"].astype("<f4")
        if settings.encoding == "list":
            encoded = {name: values.tolist() for name, values in arrays.items()}
        else:
            encoded = {name: base64.b64encode(values.tobytes()).decode("ascii") for name, values in arrays.items()}
        # Names are those of the numbers in `labels`.
        names = names_of(self.pipe, settings)
        segments = [
            {"label": part["label"], "points": int(part["mask"].sum()), "score": part["score"]}
            for part in answer["segments"]
        ]
        return {"num_points": len(answer["labels"]), "names": list(names), "segments": segments, **encoded}


def names_of(pipe: Any, settings: Any) -> Sequence[str]:
    """Return the names of the labels by their numbers in the answers to a request."""
    if settings.labels:
        return pipe.label_names(settings.labels)
    further = {name: True for name in ("none_of_these", "noise") if getattr(settings, name)}
    return pipe.all_names(**further) if further else pipe.label_names()


def routes_of(task: str, pipe: Any) -> list[Route]:
    """Return the routes of a model that is not a chat model; all of them share its weights."""
    path = next(path for path, tasks in TASKS_OF.items() if task in tasks)
    route = Route(path, task, pipe, SETTINGS_OF[path])
    # A model that writes answers reads clouds with words alone.
    if task == FEATURES or pipe.feature_extractor is None:
        return [route]
    # The same model object, so that its weights are in memory once
    extract = PointCloudFeatureExtractionPipeline(
        model=pipe.model, feature_extractor=pipe.feature_extractor, device=pipe.device, task=FEATURES
    )
    return [route, Route(FEATURES_PATH, FEATURES, extract, FeatureSettings)]


def run_each(pipe: Any, clouds: Sequence[PointCloudData], batch_size: int, arguments: dict[str, Any]) -> list[Any]:
    """Run a pipeline on clouds; after an error each is run alone, and an exception is the answer of its cloud."""
    try:
        return list(pipe(list(clouds), batch_size=min(batch_size, len(clouds)), progress=False, **arguments))
    except Exception as error:
        if len(clouds) == 1:
            return [error]
        # One cloud must not spoil the answers of others that happened to share its batch.
        return [answer for cloud in clouds for answer in run_each(pipe, [cloud], 1, arguments)]
