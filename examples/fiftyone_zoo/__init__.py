"""A source of models for FiftyOne's zoo: parts of point clouds by their names, through `hf_any3d.segment`.

In the form that FiftyOne documents for remotely-sourced zoo models: `manifest.json` names the models, and this file
has `download_model` and `load_model`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import fiftyone as fo
import fiftyone.core.models as fom
import numpy as np
from transformers import pipeline

import hf_any3d

REPOSITORIES = {
    "hf_any3d/find3d": "ziqima/find3d-checkpt0",
    "hf_any3d/patchalign3d": "patchalign3d/patchalign3d-encoder",
}
"""Name in the manifest -> published name on the hub."""


def download_model(model_name: str, model_path: str) -> None:
    """Fetch and convert a model into the directory that FiftyOne keeps it in.

    Raises:
        ValueError: The manifest has no such model.
    """
    if model_name not in REPOSITORIES:
        raise ValueError(f"model_name={model_name!r}; expected one of {', '.join(REPOSITORIES)}")
    open_task: Any = pipeline  # typed for tasks of transformers alone
    open_task("zero-shot-point-cloud-segmentation", model=REPOSITORIES[model_name]).save_pretrained(model_path)


def load_model(model_name: str, model_path: str, labels: Sequence[str] = (), **arguments: Any) -> PartsModel:
    """Open a model.

    Args:
        model_name: Its name in the manifest.
        model_path: The directory of `download_model`.
        labels: Names of parts.
        **arguments: Further arguments of `hf_any3d.segment`, such as `category` or `up_axis`.

    Raises:
        ValueError: There are no labels.
    """
    if not labels:
        raise ValueError(f"labels is empty; expected names of parts, such as labels=['seat', 'leg'] for {model_name}")
    return PartsModel(model_path, labels, arguments)


class PartsModel(fom.Model):
    """Finds the parts of one point cloud at a time.

    FiftyOne has no label for single points, so `predict` returns a classification for each part that was found, with
    its share of the points; `segment` returns the labels of the points.
    """

    def __init__(self, directory: str | os.PathLike, labels: Sequence[str], arguments: dict[str, Any]):
        self.directory, self.labels, self.arguments = directory, list(labels), arguments

    @property
    def media_type(self) -> str:
        """Kind of media: single clouds."""
        return "point-cloud"

    @property
    def ragged_batches(self) -> bool:
        """True, as clouds have different numbers of points."""
        return True

    @property
    def transforms(self) -> None:
        """None: clouds are prepared by the processor that is stored with the model."""
        return None

    @property
    def preprocess(self) -> bool:
        """True, as `predict` takes files."""
        return True

    def segment(self, path: str | os.PathLike) -> hf_any3d.Segmentation:
        """Return the labels of the points of a file."""
        cloud = hf_any3d.read_point_cloud(path)
        return hf_any3d.segment(
            cloud.points,
            cloud.colors,
            normals=cloud.normals,
            model=self.directory,
            labels=self.labels,
            **self.arguments,
        )

    def predict(self, arg: str | os.PathLike) -> fo.Classifications:
        """Return a classification for each part of a file, the largest first."""
        found = self.segment(arg)
        counts = np.bincount(found.labels, minlength=len(found.names))
        parts = [
            fo.Classification(
                label=found.names[number],
                confidence=float(found.scores[found.labels == number].mean()),
                share=float(counts[number] / len(found.labels)),
            )
            for number in counts.argsort()[::-1]
            if counts[number]
        ]
        return fo.Classifications(classifications=parts)
