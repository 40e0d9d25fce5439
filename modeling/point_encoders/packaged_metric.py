"""Distances between features of the packaged encoder, as classes that have nothing to do with the scans show them.

What differs between shapes of one class should not count, but twenty scans cannot show what that is. Stored are the
mean and deviation of each feature over many shapes, and a matrix after which features vary about equally in all
directions within the classes of those shapes. `python -m studies.packaged_metric` makes the file again.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_any3d.modeling.point_encoders.packaged_encoder import packaged_tensors

PACKAGED_METRIC = Path(__file__).with_name("packaged_metric.safetensors")


def in_metric(standardized: Tensor, matrix: Tensor) -> Tensor:
    """Return standardized features `(rows, width)` in a metric `(width, width)`, each of the length `sqrt(width)`.

    That is the length of a standardized row with a deviation of 1 in each feature, so that what regularizes a head on
    standardized features suits these, too.
    """
    length = standardized.shape[-1] ** 0.5
    return length * nn.functional.normalize(standardized @ matrix, dim=-1)


@cache
def packaged_metric() -> dict[str, Tensor]:
    """Return `mean` and `scale (width,)`, and the symmetric `matrix (width, width)`; shared, and not to be changed."""
    stored = packaged_tensors(PACKAGED_METRIC)
    width = len(stored["mean"])
    # One half of a symmetric matrix is in the file.
    matrix = torch.zeros(width, width)
    rows, columns = torch.triu_indices(width, width)
    matrix[rows, columns] = matrix[columns, rows] = stored["triangle"]
    return {"mean": stored["mean"], "scale": stored["scale"], "matrix": matrix}
