"""Trace classifiers as programs of `torch.export`, in files that run with torch alone."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedConfig

from hf_any3d.modeling.any2point import (
    Any2PointForPointCloudClassification,
    PointTokenizerForPointCloudClassification,
)
from hf_any3d.modeling.patchalign3d import PatchAlign3DForPointCloudClassification
from hf_any3d.modeling.point_features import PointFeaturesForPointCloudClassification
from hf_any3d.modeling.pointnet import PointNetForPointCloudClassification
from hf_any3d.modeling.uni3d import Uni3DForPointCloudClassification

# OpenShape and PointNet++ are not among them: the number of points decides how they look for those of a ball.
Exportable = (
    Any2PointForPointCloudClassification
    | PatchAlign3DForPointCloudClassification
    | PointFeaturesForPointCloudClassification
    | PointNetForPointCloudClassification
    | PointTokenizerForPointCloudClassification
    | Uni3DForPointCloudClassification
)

# Models of points whose features are exported: as above, and without depth views, whose images no program draws.
_OF_POINTS = ("act3d", "any2point", "patchalign3d", "pointnet", "uni3d")

# Sizes while tracing, which the graph does not keep; a batch of 1 would be taken as a constant.
_BATCH, _POINTS = 2, 1024
Runner = Callable[[Tensor], Tensor]


def export_program(model: nn.Module, path: str | os.PathLike | None = None) -> ExportedProgram:
    """Export a classifier as a program; `program.module()(points)` returns its logits.

    All operators are torch's own, so that the file runs without this package:
    `torch.export.load("model.pt2").module()(points)`.

    Args:
        model: A classifier with or without adapters, in any precision.
        path: File to save it to, usually `….pt2`; None to keep it in memory.

    Raises:
        ValueError: The model cannot be exported.
    """
    with torch.no_grad():
        program = trace_classifier(model).run_decompositions({torch.ops.hf_any3d.knn.default: _nearest})
    if path is not None:
        with replaced_when_complete(Path(path)) as unfinished:
            torch.export.save(program, unfinished)
    return program


def open_program(path: Path) -> Runner:
    """Open a file of `export_program` as a function from points to logits."""
    module = torch.export.load(path).module()

    def run(points: Tensor) -> Tensor:
        with torch.no_grad():
            return module(points)

    return run


def trace_classifier(model: nn.Module) -> ExportedProgram:
    """Trace a classifier in eval mode, adapters included.

    Args:
        model: A classifier, possibly wrapped by PEFT. Its mode and weights do not change.

    Returns:
        A program from `points` `(batch, points, in_channels)` to logits `(batch, labels)`, for any batch size and at
        least `config.min_points` points. Neighbors are still one operator of ours, `hf_any3d::knn`.

    Raises:
        ValueError: The model cannot be exported; the message has the reason.
    """
    base = classifier_of(model)
    _refuse(base)
    config = base.config
    sizes = {0: Dim("batch", min=1), 1: Dim("points", min=config.min_points)}
    example = torch.zeros(_BATCH, max(_POINTS, 2 * config.min_points), config.in_channels, device=base.device)
    with eval_mode(model), torch.no_grad():
        program = torch.export.export(_Logits(model), (example,), dynamic_shapes={"points": sizes}, strict=False)
    # Stack traces hold paths of this machine.
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def classifier_of(model: nn.Module) -> Exportable:
    """Return the classifier itself if a PEFT method wraps it.

    Raises:
        ValueError: It is something else.
    """
    base = getattr(model, "get_base_model", lambda: model)()
    if not isinstance(base, Exportable):
        names = [kind.__name__ for kind in get_args(Exportable)]
        raise ValueError(
            f"{type(base).__name__}: only classifiers can be exported, and not of every system; expected one of "
            f"{', '.join(names)}, with or without adapters"
        )
    return base


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode temporarily."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def replaced_when_complete(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder, whose files replace the old ones at the end.

    The name must be the same, since the first file of a format may name a second one with the weights.

    Raises:
        FileNotFoundError: The folder of `path` does not exist.
        IsADirectoryError: `path` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        yield Path(folder) / path.name
        # The file itself is last, so that its companions are complete when it appears.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.parent / file.name)


class _Logits(nn.Module):
    """A classifier as a function from points to logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Compute `(batch, labels)` from `(batch, points, in_channels)`."""
        return self.model(points=points).logits


def _refuse(model: Exportable) -> None:
    config = model.config
    # In a batch of another size, a file of such a model would classify the same cloud differently.
    if flags := config.batch_dependent_flags:
        raise ValueError(
            f"{', '.join(flags)}: predictions of this model depend on the other clouds of a batch, and an exported "
            "file could not warn of it; only models whose predictions do not can be exported"
        )
    if isinstance(model, PointFeaturesForPointCloudClassification):
        if "views" in config.features:
            raise ValueError(f"features={list(config.features)}: depth views cannot be exported")
        for name in ("encoder", "wrap"):
            kind = getattr(getattr(config, f"{name}_config"), "model_type", None)
            if kind not in (None, *_OF_POINTS):
                raise ValueError(
                    f"{name}_config of the type {kind!r} cannot be exported; expected one of {', '.join(_OF_POINTS)}"
                )
    if isinstance(model, Any2PointForPointCloudClassification):
        frozen, settings = model.any2point.encoder, model.config.encoder_config
    else:
        frozen, settings = model, config
    if getattr(frozen, "hf_quantizer", None) is not None:
        raise ValueError("quantization_config: a quantized encoder cannot be exported; load the model without it")
    assert isinstance(settings, PreTrainedConfig)
    implementation = settings._attn_implementation or "sdpa"
    if implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"attn_implementation={implementation!r} cannot be exported; load the model with 'sdpa' or 'eager'"
        )
    if model.device.type == "meta":
        raise ValueError("the model is on the meta device and has no weights to export")


def _nearest(query: Tensor, points: Tensor, k: int, method: str) -> tuple[Tensor, Tensor]:
    """Compute `knn` with torch's operators, without writing in place."""
    query, points = query[..., :3].float(), points[..., :3].float()
    x, y, z = (query.unsqueeze(2) - points.unsqueeze(1)).square().unbind(dim=-1)  # (batch, queries, points) each
    # Bits of non-negative floats sort like integers; the index in the lower half breaks ties.
    key = (x + y + z).view(torch.int32).long() << 32 | torch.arange(points.shape[1], device=points.device)
    key = key.topk(k, dim=-1, largest=False).values
    return key & 0xFFFFFFFF, (key >> 32).int().view(torch.float32)
