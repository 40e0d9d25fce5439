"""Settings of autoencoders."""

from __future__ import annotations

from dataclasses import dataclass

from hf_any3d.tasks.settings import ESTIMATE_NORMALS, setting

_NOT_SERVED = "autoencoders are looked at, by command and page, and have no route or rows"


@dataclass(frozen=True)
class ReconstructionSettings:
    """Settings of `point-cloud-reconstruction`."""

    threshold: float = setting(
        0.01,
        "Distance within which a point counts as reconstructed, for the F-score; above 0.",
        refused={
            "runs": _NOT_SERVED,
            "many_files": _NOT_SERVED,
            "service": _NOT_SERVED,
            "demo": "the page has one figure",
        },
    )
    estimate_normals: bool = setting(
        False,
        ESTIMATE_NORMALS,
        refused={"runs": _NOT_SERVED, "many_files": _NOT_SERVED, "service": _NOT_SERVED},
    )
