"""From a classifier to a graph of operators, with batch and number of points left open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointForPointCloudClassification

# Sizes while tracing, which the graph forgets. A batch of one would be taken for the only batch there is.
_BATCH, _POINTS = 2, 1024


def classifier_of(model: nn.Module) -> Any2PointForPointCloudClassification:
    """The classifier itself, where a PEFT method wraps it.

    Raises:
        ValueError: If it is something else.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(base, Any2PointForPointCloudClassification):
        raise ValueError(
            f"{type(base).__name__}: only classifiers can be exported; expected an "
            f"{Any2PointForPointCloudClassification.__name__}, with or without adapters"
        )
    return base


def trace_classifier(model: nn.Module) -> ExportedProgram:
    """Trace a classifier in eval mode, adapters included.

    Args:
        model: A classifier, perhaps wrapped by PEFT. Its mode and weights stay as they are.

    Returns:
        A program from `points` `(batch, points, in_channels)` to logits `(batch, labels)`, both sizes open, with at
        least `config.min_points` points. Neighbours are still one operator of ours, `hf_any3d::knn`.

    Raises:
        ValueError: If the model cannot be exported; the text says why.
    """
    base = classifier_of(model)
    _refuse(base)
    config = base.config
    sizes = {0: Dim("batch", min=1), 1: Dim("points", min=config.min_points)}
    example = torch.zeros(_BATCH, max(_POINTS, 2 * config.min_points), config.in_channels, device=base.device)
    with eval_mode(model), torch.no_grad():
        program = torch.export.export(_Logits(model), (example,), dynamic_shapes={"points": sizes}, strict=False)
    # Where each operator was called from: paths of this machine.
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and back into the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class _Logits(nn.Module):
    """A classifier as a function of points alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """`(batch, points, in_channels)` to `(batch, labels)`."""
        return self.model(points=points).logits


def _refuse(model: PreTrainedModel) -> None:
    config: Any2PointConfig = model.config
    if flags := config.batch_dependent_flags:
        raise ValueError(
            f"{', '.join(flags)}: predictions of this model depend on the other clouds of a batch, and an exported "
            "file could not say so; only models whose clouds do not touch each other can be exported"
        )
    if getattr(model.any2point.encoder, "hf_quantizer", None) is not None:
        raise ValueError("quantization_config: a quantized encoder cannot be exported; load the model without it")
    implementation = config.encoder_config._attn_implementation or "sdpa"
    if implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"attn_implementation={implementation!r} cannot be exported; load the model with 'sdpa' or 'eager'"
        )
    if model.device.type == "meta":
        raise ValueError("the model is on the meta device and has no weights to export")
