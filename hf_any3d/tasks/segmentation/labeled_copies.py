"""Labels of a pipeline in copies of the files that went in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.classes.class_codes import class_codes
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.files.label_words import NO_LABEL
from hf_any3d.data.files.labels import check_labels_fit, write_labels
from hf_any3d.processing.voxels import nearest_rows

_LAS = (".las", ".laz")


@dataclass(frozen=True)
class LabeledCopies:
    """Settings of copies of files into which the labels of their clouds are written.

    Attributes:
        write: The copy of a single file, or a folder for copies of the same names.
        field: Where the class goes, instead of the format's own place; see `write_labels`.
        classes: Codes by the names of classes; see `class_codes`.
        scores: Whether the probability of each class is written too.
        unknown: Whether it is written how unlike the training each point is.
        names: Names of the classes, if they are not those of the model's config.
    """

    write: str | os.PathLike
    field: str | None = None
    classes: Mapping[str, int] | str | None = None
    scores: bool = False
    unknown: bool = False
    names: tuple[str, ...] | None = None

    def target(self, source: str) -> Path:
        """Return where the copy of a file is written."""
        path = Path(self.write)
        # A path without an ending is a folder, as of other outputs.
        return path / Path(source).name if path.is_dir() or not path.suffix else path

    def check(self, source: str | None, names: Sequence[str], config: Any) -> None:
        """Check, before the model runs, that the copy can be written."""
        if source is None or not os.path.isfile(source):
            # Only a file can be copied: an array has none, and one on a server is not written here.
            raise ValueError(f"write={os.fspath(self.write)!r}: {source or 'the cloud'} is no file of this machine")
        codes = self._codes(source, names, config)
        check_labels_fit(
            source,
            self.target(source),
            # Without codes, the numbers of the classes are written.
            codes=range(len(names)) if codes is None else codes,
            scores=self.scores,
            unknown=self.unknown,
            field=self.field,
        )

    def save(self, source: str, answer: Mapping[str, Any], names: Sequence[str], config: Any) -> None:
        """Write the copy of a file by an answer of a pipeline; what is noise keeps its class."""
        write_labels(
            source,
            self.target(source),
            labels_of_copy(answer),
            scores=answer["scores"] if self.scores else None,
            unknown=answer["unknown"] if self.unknown else None,
            face_labels=answer.get("face_labels"),
            field=self.field,
            codes=self._codes(source, names, config),
        )

    def _codes(self, source: str, names: Sequence[str], config: Any) -> list[int] | None:
        return codes_in_file(source, names, config, self.classes, self.field)


def codes_in_file(
    path: str,
    names: Sequence[str],
    config: Any,
    classes: Mapping[str, int] | str | None,
    field: str | None,
) -> list[int] | None:
    """Return the codes of classes in a file of this name; those of ASPRS in the classification of LAS."""
    # In other fields a code has no meaning that LAS knows.
    is_classification = field is None or field.lower() == "classification"
    are_asprs = is_classification and path.lower().endswith(_LAS)
    return class_codes(names, config, classes, are_asprs=are_asprs)


def labels_of_copy(answer: Mapping[str, Any]) -> np.ndarray:
    """Return the labels (points,) of an answer as copies get them: noise has none, and keeps its class."""
    labels = answer["labels"]
    return np.where(answer["noise"], NO_LABEL, labels) if "noise" in answer else labels


def file_of(cloud: Any) -> str | None:
    """Return the path of a cloud's file; None for clouds without a file."""
    path = cloud.get("path") if isinstance(cloud, Mapping) else cloud
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else None


def labels_of_mesh(mesh: PointCloudData, samples: np.ndarray, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer for the vertices and faces of a mesh: that of the nearest sample.

    Args:
        mesh: The mesh.
        samples: (samples, 3) points on its surface, in its coordinates.
        answer: `labels`, `scores` and perhaps `unknown` and `noise`, (samples,) each.

    Returns:
        The same, (vertices,) each, and `face_labels (faces,)` of the faces' centers.
    """
    # (vertices,) rows of samples
    nearest = nearest_rows(mesh.points, samples)
    of_vertices = {name: answer[name][nearest] for name in ("labels", "scores", "unknown", "noise") if name in answer}
    assert mesh.faces is not None
    # (faces, 3), added up in double precision and compared in that of the samples
    centers = mesh.points[mesh.faces].mean(axis=1, dtype=np.float64).astype(samples.dtype)
    return {**of_vertices, "face_labels": answer["labels"][nearest_rows(centers, samples)]}
