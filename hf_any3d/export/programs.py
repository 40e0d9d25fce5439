"""Programs of `torch.export`: files that plain torch runs."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from hf_any3d.export.tracing import trace_classifier
from hf_any3d.export.verifying import Runner, replaced_when_complete


def export_program(model: nn.Module, path: str | os.PathLike | None = None) -> ExportedProgram:
    """Make a program of a classifier; `program.module()(points)` gives its logits.

    All operators are torch's own, so that the file runs where this package is not installed:
    `torch.export.load("model.pt2").module()(points)`.

    Args:
        model: A classifier with or without adapters, in any precision.
        path: Where to save it, usually `….pt2`; None to keep it in memory.

    Raises:
        ValueError: If the model cannot be exported.
    """
    with torch.no_grad():
        program = trace_classifier(model).run_decompositions({torch.ops.hf_any3d.knn.default: _nearest})
    if path is not None:
        with replaced_when_complete(Path(path)) as unfinished:
            torch.export.save(program, unfinished)
    return program


def open_program(path: Path) -> Runner:
    """A function from points to logits, from a file that `export_program` wrote."""
    module = torch.export.load(path).module()

    def run(points: Tensor) -> Tensor:
        with torch.no_grad():
            return module(points)

    return run


def _nearest(query: Tensor, points: Tensor, k: int, method: str) -> tuple[Tensor, Tensor]:
    """`knn` in operators of torch, none of which writes in place."""
    query, points = query[..., :3].float(), points[..., :3].float()
    x, y, z = (query.unsqueeze(2) - points.unsqueeze(1)).square().unbind(dim=-1)  # (batch, queries, points) each
    # The bits of floats that are not negative sort as integers do; the index behind them settles ties.
    key = (x + y + z).view(torch.int32).long() << 32 | torch.arange(points.shape[1], device=points.device)
    key = key.topk(k, dim=-1, largest=False).values
    return key & 0xFFFFFFFF, (key >> 32).int().view(torch.float32)
