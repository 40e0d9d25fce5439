"""Settings of models that find boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_any3d.tasks.settings import ESTIMATE_NORMALS, UP_AXIS, setting

_WRITES = "For layout models: "
_BOXES = "rows have boxes; `hf-any3d detect --workers` writes layouts"
_SLIDER = {"demo": "its slider shows boxes of all scores"}
_PAGE = {"demo": "the page shows all objects that the model finds by itself"}
_OWN = _PAGE | {"many_files": _BOXES}


@dataclass(frozen=True)
class DetectionSettings:
    """Settings of `point-cloud-object-detection`."""

    threshold: float = setting(0.5, "Minimum score of a box.", low=0, high=1, is_named=True, refused=_SLIDER)
    nms: Literal["turned", "bounds", "base"] | None = setting(
        "turned",
        "How non-maximum suppression measures overlap: turned (oriented boxes), bounds (axis-aligned "
        "bounds) or base (their footprint).",
        none="no box is left out",
        refused=_PAGE,
    )
    nms_iou: float = setting(
        0.25,
        "If two boxes overlap by more than this IoU, only the one with the higher score is kept.",
        low=0,
        high=1,
        is_named=True,
        refused=_PAGE,
    )
    top_k: int | None = setting(None, "Maximum number of boxes per point cloud.", low=1, is_named=True, refused=_PAGE)
    up_axis: Literal["x", "y", "z"] | None = setting(None, UP_AXIS, is_named=True)
    task: Literal["objects", "layout", "all"] | None = setting(
        None, _WRITES + "what to generate; by default objects.", refused=_OWN
    )
    labels: tuple[str, ...] | None = setting(
        None, _WRITES + "object classes to look for.", argument="candidate_labels", refused=_OWN
    )
    align: bool | tuple[str, ...] | None = setting(
        None, _WRITES + "whether to align the scan's frame automatically, or which steps to apply.", refused=_OWN
    )
    grammar: bool | None = setting(None, _WRITES + "constrain generation to well-formed output.", refused=_OWN)
    estimate_normals: bool = setting(False, ESTIMATE_NORMALS)
