"""Points of a scan that are no measured surface, and are left out: withheld ones, synthetic ones, and noise.

All commands tell of them by the sentence of `left_out_words`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_any3d.data.classes.las_classes import FAMILIES
from hf_any3d.data.inputs import ATTRIBUTES
from hf_any3d.utils.messages import percent

if TYPE_CHECKING:
    from hf_any3d.data.files import PointCloudData

WITHHELD, SYNTHETIC = "withheld", "synthetic"
"""Flags of LAS: of points that are deleted but for their record, and of those that were not measured."""
# Share below which digits say nothing more
_LEAST_SHARE = 1e-4


@dataclass(frozen=True)
class Withheld:
    """Withheld points of a scan.

    Attributes:
        whole: The scan with them.
        is_withheld: (points,) bool, which points they are.
    """

    whole: PointCloudData
    is_withheld: np.ndarray

    def spread(self, values: np.ndarray, withheld: Any) -> np.ndarray:
        """Return values (others, ...) with one for each point of the file: `withheld` for those that are."""
        every = np.full((len(self.is_withheld), *values.shape[1:]), withheld, values.dtype)
        every[~self.is_withheld] = values
        return every


def why_left_out(
    cloud: PointCloudData, flags: Sequence[str] = (WITHHELD, SYNTHETIC), *, noise: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each reason to leave points out, and which points (points,) it is; each point has the first of them.

    Args:
        cloud: The scan.
        flags: Flags of LAS by which points are left out. Where all points are synthetic, as in clouds of photographs,
            that tells nothing of single ones, and they stay.
        noise: Whether classes of noise, 7 and 18 in LAS, are left out, too.
    """
    given = cloud.further or {}
    is_left_out = np.zeros(len(cloud), bool)
    found = {name: given[name].astype(bool) for name in flags if name in given}
    if SYNTHETIC in found and found[SYNTHETIC].all():
        del found[SYNTHETIC]
    if noise and cloud.labels is not None and cloud.label_codes is not None:
        found |= {f"noise (class {code})": cloud.labels == code for code in FAMILIES["noise"]}
    for reason, mask in found.items():
        own = mask & ~is_left_out
        if own.any():
            is_left_out |= own
            yield reason, own


def count_left_out(
    cloud: PointCloudData, flags: Sequence[str] = (WITHHELD, SYNTHETIC), *, noise: bool = False
) -> Counter[str]:
    """Return how many points are left out for each reason; see `why_left_out`."""
    return Counter({reason: int(mask.sum()) for reason, mask in why_left_out(cloud, flags, noise=noise)})


def left_out_words(counts: Mapping[str, int], total: int, name: object = None) -> str:
    """Return the sentence about points that are left out; empty if there are none.

    Such as "a.laz: 23 % of the points are left out: 12,345 withheld, 20 noise (class 7)".

    Args:
        counts: Points of each reason.
        total: Number of all points.
        name: Name of the scan.
    """
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
    if not reasons:
        return ""
    prefix = "" if name is None else f"{name}: "
    return f"{prefix}{share_words(sum(counts.values()), total)} of the points are left out: {reasons}"


def share_words(count: int, total: int) -> str:
    """Return a share with two digits, such as "23 %", "2.3 %" or "0.23 %"."""
    share = count / total
    if 0 < share < _LEAST_SHARE:
        return f"less than {100 * _LEAST_SHARE:g} %"
    decimals = 0 if share >= 0.1 else 1 if share >= 0.01 else 2
    return f"{percent(share, decimals)} %"


def split_withheld(cloud: PointCloudData) -> tuple[PointCloudData, Withheld | None]:
    """Return a scan without its withheld points, which the standard leaves out of all processing, and these.

    Raises:
        PointCloudError: All points are withheld.
    """
    from hf_any3d.data.files import PointCloudError

    is_withheld = (cloud.further or {}).get(WITHHELD)
    if is_withheld is None or not is_withheld.any():
        return cloud, None
    if is_withheld.all():
        raise PointCloudError(f"all {len(cloud):,} points are withheld; clear the flag of those that should count")
    return rows_of_cloud(cloud, np.flatnonzero(~is_withheld)), Withheld(cloud, is_withheld)


def rows_of_cloud(cloud: PointCloudData, rows: np.ndarray) -> PointCloudData:
    """Return the points `rows` of a cloud with what is known of each, none of which is withheld."""
    # Not through the constructor, which would make floats of returns that are bytes.
    part = copy(cloud)
    part.scanner = None
    for name in ("points", "labels", *ATTRIBUTES.values()):
        values = getattr(cloud, name)
        if values is not None:
            setattr(part, name, values[rows])
    if cloud.further is not None:
        part.further = {name: values[rows] for name, values in cloud.further.items() if name != WITHHELD}
    return part
