"""Tasks of the service: settings of requests, and answers of a pipeline to batches of clouds."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from hf_any3d.data.files import PointCloudData
from hf_any3d.pipelines import PointCloudFeatureExtractionPipeline
from hf_any3d.serving.limits import Refused, ServeLimits

CHAT = "point-cloud-text-to-text"
CLASSIFY, ZERO_SHOT = "point-cloud-classification", "zero-shot-point-cloud-classification"
SEGMENT, PARTS_BY_NAME = "point-cloud-segmentation", "zero-shot-point-cloud-segmentation"
SEGMENT_PATH, FILE_PATH = "/v1/segment", "/v1/segment/file"
DETECT, FEATURES = "point-cloud-object-detection", "point-cloud-feature-extraction"


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


# Fields of forms are texts, in which commas separate labels.
Labels = Annotated[tuple[str, ...], BeforeValidator(_split)]


class Settings(BaseModel):
    """Settings of a request; requests with equal settings are processed together."""

    # Frozen settings can be hashed, and requests are gathered by them.
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassifySettings(Settings):
    """Settings of `/v1/classify`."""

    top_k: int | None = Field(5, ge=1, description="Number of labels; null for all.")
    unknown: bool | None = Field(None, description="False for labels without the model's unknown score.")
    labels: Labels | None = Field(None, description="Labels to choose from, for zero-shot models alone.")
    template: str | None = Field(None, description="Text with {} for a label, for zero-shot models.")
    text_embeds: tuple[tuple[float, ...], ...] | None = Field(
        None, description="Features of the labels, (labels, width), in place of the model's text encoder."
    )
    up_axis: Literal["x", "y", "z"] | None = Field(None, description="Axis that points up in the clouds.")


class FeatureSettings(Settings):
    """Settings of `/v1/features`."""

    feature: Literal["pooled", "class_token", "tokens"] = Field("pooled", description="tokens: with their centers.")
    up_axis: Literal["x", "y", "z"] | None = Field(None, description="Axis that points up in the clouds.")


class SegmentSettings(Settings):
    """Settings of `/v1/segment`."""

    category: str | None = Field(None, description="Category of the object, for models of parts.")
    labels: Labels | None = Field(None, description="Names of parts, for models that find parts by name.")
    up_axis: Literal["x", "y", "z"] | None = Field(None, description="Axis that points up in the clouds.")
    max_points: int | None = Field(None, ge=1, description="Thin larger clouds out to this many points.")
    scores: bool = Field(False, description="Whether to return the probability of each point's label.")
    encoding: Literal["list", "base64"] = Field(
        "list", description="base64: labels as little-endian int32, scores and points as float32, noise as bytes."
    )


class DetectSettings(Settings):
    """Settings of `/v1/detect`."""

    threshold: float = Field(0.5, ge=0, le=1, description="Lowest score of a box.")
    nms: Literal["turned", "bounds", "base"] | None = Field(
        "turned",
        description="What overlaps: the turned boxes, their bounds along the axes, or the bounds' base; null leaves "
        "no box out.",
    )
    nms_iou: float = Field(0.25, ge=0, le=1, description="Of two boxes that overlap by more, the likelier one stays.")
    top_k: int | None = Field(None, ge=1, description="Largest number of boxes of a cloud.")
    up_axis: Literal["x", "y", "z"] | None = Field(None, description="Axis that points up in the clouds.")
    task: Literal["objects", "layout", "all"] | None = Field(
        None, description="Of models that write layouts: what is written, objects by default."
    )
    labels: Labels | None = Field(None, description="Of models that write layouts: objects to look for.")
    align: bool | Labels | None = Field(
        None, description="Of models that write layouts: whether the frame of a scan is found, or which parts of it."
    )
    grammar: bool | None = Field(None, description="Of models that write layouts: whether answers are well-formed.")


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
        if isinstance(settings, ClassifySettings):
            arguments = {"top_k": settings.top_k, "up_axis": settings.up_axis, "candidate_labels": settings.labels}
            arguments["unknown"] = settings.unknown
            arguments["hypothesis_template"] = settings.template
            if settings.text_embeds is not None:
                # (labels, width)
                arguments["text_embeds"] = np.array(settings.text_embeds, dtype=np.float32)
        elif isinstance(settings, FeatureSettings):
            arguments = {"up_axis": settings.up_axis}
        elif isinstance(settings, DetectSettings):
            arguments = settings.model_dump()
            arguments["candidate_labels"] = arguments.pop("labels")
            # None is a choice of its own for nms and top_k.
            writes = ("task", "candidate_labels", "align", "grammar")
            return {name: value for name, value in arguments.items() if value is not None or name not in writes}
        else:
            arguments = {"category": settings.category, "max_points": settings.max_points}
            arguments |= {"candidate_labels": settings.labels, "up_axis": settings.up_axis}
        # top_k=None stands for all labels.
        return {name: value for name, value in arguments.items() if value is not None or name == "top_k"}

    def _shown(self, settings: Any, cloud: PointCloudData, answer: Any) -> Any:
        if isinstance(settings, ClassifySettings):
            return {"labels": answer}
        if isinstance(settings, DetectSettings):
            return {"boxes": answer}
        if isinstance(settings, FeatureSettings):
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
        names = self.pipe.label_names(settings.labels) if settings.labels else self.pipe.label_names()
        segments = [
            {"label": part["label"], "points": int(part["mask"].sum()), "score": part["score"]}
            for part in answer["segments"]
        ]
        return {"num_points": len(answer["labels"]), "names": list(names), "segments": segments, **encoded}


# Task -> path of its route, and settings of requests
_HEADS: dict[str, tuple[str, type[Settings]]] = {
    CLASSIFY: ("/v1/classify", ClassifySettings),
    ZERO_SHOT: ("/v1/classify", ClassifySettings),
    DETECT: ("/v1/detect", DetectSettings),
    SEGMENT: (SEGMENT_PATH, SegmentSettings),
    PARTS_BY_NAME: (SEGMENT_PATH, SegmentSettings),
}


SERVED = (*_HEADS, FEATURES, CHAT)
"""Tasks of the models that can be served."""


def routes_of(task: str, pipe: Any) -> list[Route]:
    """Return the routes of a model that is not a chat model; all of them share its weights."""
    if task == FEATURES:
        return [Route("/v1/features", task, pipe, FeatureSettings)]
    path, settings = _HEADS[task]
    if pipe.feature_extractor is None:  # a model that writes answers reads clouds with words alone
        return [Route(path, task, pipe, settings)]
    # The same model object, so that its weights are in memory once
    extract = PointCloudFeatureExtractionPipeline(
        model=pipe.model, feature_extractor=pipe.feature_extractor, device=pipe.device, task=FEATURES
    )
    return [Route(path, task, pipe, settings), Route("/v1/features", FEATURES, extract, FeatureSettings)]


def run_each(pipe: Any, clouds: Sequence[PointCloudData], batch_size: int, arguments: dict[str, Any]) -> list[Any]:
    """Run a pipeline on clouds; after an error each is run alone, and an exception is the answer of its cloud."""
    try:
        return list(pipe(list(clouds), batch_size=min(batch_size, len(clouds)), progress=False, **arguments))
    except Exception as error:
        if len(clouds) == 1:
            return [error]
        # One cloud must not spoil the answers of others that happened to share its batch.
        return [answer for cloud in clouds for answer in run_each(pipe, [cloud], 1, arguments)]
