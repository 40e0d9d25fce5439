"""Protocols of the modules of a guided adapter, which are defined beside the method: what the forms read of them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from hf_any3d.modeling.kernels.cells import FlatCells, Membership


class Guidance(Protocol):
    """Settings of the aggregation, as in `GuidedAdapterConfig`."""

    @property
    def scale(self) -> float:
        """Factor of what is added."""
        ...

    @property
    def cell_size(self) -> float | None:
        """Edge of a cell, in the units of the views; None for the geometry's own."""
        ...

    @property
    def voxel_size(self) -> float:
        """Edge of a voxel."""
        ...

    @property
    def pooling(self) -> str:
        """Pooling over a cell: "mean" or "max_mean"."""
        ...


class CellAttention(Protocol):
    """Attention within cells: weights `(views, …)` of a layer norm, of queries, keys and values, and of the output."""

    heads: int
    norm_weight: Tensor
    norm_bias: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor

    @property
    def scale(self) -> float:
        """Factor of the scores."""
        ...

    @property
    def drop_rate(self) -> float:
        """Dropout of the attention weights."""
        ...

    def can_be_fused(self) -> bool:
        """Return whether its weights may be read instead of calling it."""
        ...

    def __hash__(self) -> int: ...


class CellNorm(Protocol):
    """Batch norm with GELU of the rows `(batch, views, rows, hidden)` of cells."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    count_empty: bool
    eps: float
    momentum: float

    def can_be_fused(self) -> bool:
        """Return whether its weights may be read instead of calling it."""
        ...

    def update_statistics(self, mean: Tensor, variance: Tensor, total: Tensor, cells: Membership | FlatCells) -> None:
        """Update the running statistics by those of `total` rows."""
        ...

    def __call__(self, rows: Tensor, cells: Membership | FlatCells) -> Tensor:
        """Normalize rows."""
        ...
