"""Settings of models that find boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_any3d.tasks.settings import ESTIMATE_NORMALS, setting

_WRITES = "Of models that write layouts: "
_BOXES = "rows have boxes; `hf-any3d detect --workers` writes layouts"
_SLIDER = {"demo": "its slider shows boxes of all scores"}
_PAGE = {"demo": "the page shows all objects that the model finds by itself"}
_OWN = _PAGE | {"many_files": _BOXES}


@dataclass(frozen=True)
class DetectionSettings:
    """Settings of `point-cloud-object-detection`."""

    threshold: float = setting(0.5, "Lowest score of a box.", low=0, high=1, is_named=True, refused=_SLIDER)
    nms: Literal["turned", "bounds", "base"] | None = setting(
        "turned",
        "What overlaps: the turned boxes, their bounds along the axes, or the bounds' base.",
        none="no box is left out",
        refused=_PAGE,
    )
    nms_iou: float = setting(
        0.25,
        "Of two boxes that overlap by more, the likelier one stays.",
        low=0,
        high=1,
        is_named=True,
        refused=_PAGE,
    )
    top_k: int | None = setting(None, "Largest number of boxes of a cloud.", low=1, is_named=True, refused=_PAGE)
    up_axis: Literal["x", "y", "z"] | None = setting(None, "Axis that points up in the clouds.", is_named=True)
    task: Literal["objects", "layout", "all"] | None = setting(
        None, _WRITES + "what is written, objects by default.", refused=_OWN
    )
    labels: tuple[str, ...] | None = setting(
        None, _WRITES + "objects to look for.", argument="candidate_labels", refused=_OWN
    )
    align: bool | tuple[str, ...] | None = setting(
        None, _WRITES + "whether the frame of a scan is found, or which parts of it.", refused=_OWN
    )
    grammar: bool | None = setting(None, _WRITES + "whether answers are well-formed.", refused=_OWN)
    estimate_normals: bool = setting(False, ESTIMATE_NORMALS)
