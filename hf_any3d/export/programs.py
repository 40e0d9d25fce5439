"""Trace classifiers and detectors as programs of `torch.export`, in files that run with torch alone."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.registry import MODEL_TYPES, type_of_model
from hf_any3d.utils.atomic_files import folder_beside

# Model classes that are exported, by the records of their models.
EXPORTED = tuple(name for kind in MODEL_TYPES.values() for name in kind.exported)

# Sizes while tracing, which the graph does not keep; a batch of 1 would be taken as a constant.
_BATCH, _POINTS = 2, 1024
Runner = Callable[[Tensor], Any]
"""Function from points to the output, or to a tuple of the outputs of `output_names`."""


def export_program(model: nn.Module, path: str | os.PathLike | None = None) -> ExportedProgram:
    """Export a model as a program; `program.module()(points)` returns its logits, of a detector the boxes too.

    All operators are torch's own, so that the file runs without this package:
    `torch.export.load("model.pt2").module()(points)`.

    Args:
        model: A classifier or detector with or without adapters, in any precision.
        path: File to save it to, usually `….pt2`; None to keep it in memory.

    Raises:
        ValueError: The model cannot be exported; says what stands in the way.
    """
    # Neighbors become operators of torch, so that the file opens without this package.
    with torch.no_grad():
        program = trace(model).run_decompositions({torch.ops.hf_any3d.knn.default: _nearest})
    if path is not None:
        with replaced_when_complete(Path(path)) as unfinished:
            # In memory: on a disk that is full, torch would end the process.
            content = io.BytesIO()
            torch.export.save(program, content)
            unfinished.write_bytes(content.getvalue())
    return program


def open_program(path: Path) -> Runner:
    """Open a file of `export_program` as a function from points to what it returns."""
    module = torch.export.load(path).module()

    def run(points: Tensor) -> Any:
        with torch.no_grad():
            return module(points)

    return run


def trace(model: nn.Module) -> ExportedProgram:
    """Trace a classifier or detector in eval mode, adapters included; the model does not change.

    The program goes from `points` `(batch, points, in_channels)` to the outputs of `output_names`, for any batch size
    and at least `least_points` points. Neighbors are still one operator of ours, `hf_any3d::knn`.
    """
    base = exportable(model)
    obstacle = next(_obstacles(base), None)
    if obstacle:
        raise ValueError(obstacle)
    least = least_points(base)
    sizes = {0: Dim("batch", min=1), 1: Dim("points", min=least)}
    example = torch.zeros(_BATCH, max(_POINTS, 2 * least), base.config.in_channels, device=base.device)
    outputs = _Outputs(model, output_names(base))
    with evaluation_mode(model), torch.no_grad():
        program = torch.export.export(outputs, (example,), dynamic_shapes={"points": sizes}, strict=False)
    # Stack traces hold paths of this machine.
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def exportable(model: nn.Module) -> PreTrainedModel:
    """Return the classifier or detector itself if a PEFT method wraps it."""
    base = getattr(model, "get_base_model", lambda: model)()
    # By names, since records list classes that are not imported here.
    if not any(parent.__name__ in EXPORTED for parent in type(base).__mro__):
        raise ValueError(
            f"{type(base).__name__}: only classifiers and detectors can be exported, not of every system; expected "
            f"one of {', '.join(EXPORTED)}, with or without adapters"
        )
    return cast(PreTrainedModel, base)


def output_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of a file's outputs, which are fields of the model's output."""
    return ("logits", "pred_boxes") if isinstance(model, Detr3DForPointCloudObjectDetection) else ("logits",)


def least_points(model: PreTrainedModel) -> int:
    """Return the smallest number of points of a cloud for a file.

    A detector pads the tokens of smaller clouds, which is another graph.
    """
    config = model.config
    if not isinstance(config, Detr3DConfig):
        return config.min_points
    encoder = config.point_encoder_config
    if encoder is not None:
        assert isinstance(encoder, PreTrainedConfig)
        return encoder.min_points
    # A cloud has to fill all tokens and each neighborhood.
    return max(config.num_tokens, config.num_neighbors)


@contextmanager
def replaced_when_complete(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder, whose files replace the old ones at the end.

    The name must be the same, since the first file of a format may name a second one with the weights.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file")
    # Beside the file, since renaming works within one file system only.
    with folder_beside(path) as folder:
        yield folder / path.name
        # The file itself is last, so that its companions are complete when it appears.
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.parent / file.name)


class _Outputs(nn.Module):
    """A model as a function from points to some of its outputs."""

    def __init__(self, model: nn.Module, names: Sequence[str]):
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, points: torch.Tensor) -> Any:
        """Compute the outputs from `(batch, points, in_channels)`; one alone is no tuple."""
        output = self.model(points=points)
        found = [output[name] for name in self.names]
        return tuple(found) if len(found) > 1 else found[0]


def _obstacles(model: PreTrainedModel) -> Iterator[str]:
    """Yield the reasons why a model cannot be exported."""
    config = model.config
    # In a batch of another size, a file of such a model would classify the same cloud differently.
    flags = getattr(config, "batch_dependent_flags", None)
    if flags:
        yield f"{', '.join(flags)}: predictions of this model depend on the other clouds of a batch"
    yield from _obstacles_of_parts(model)
    frozen = model
    settings = config
    kind = type_of_model(type(model))
    if kind is not None and kind.has_frozen_encoder:
        frozen = model.base_model.encoder
        settings = config.encoder_config
    if getattr(frozen, "hf_quantizer", None) is not None:
        yield "quantization_config: a quantized encoder cannot be exported; load the model without it"
    assert isinstance(settings, PreTrainedConfig)
    implementation = settings._attn_implementation or "sdpa"
    if implementation not in ("sdpa", "eager"):
        yield f"attn_implementation={implementation!r} cannot be exported; load the model with 'sdpa' or 'eager'"
    if model.device.type == "meta":
        yield "the model is on the meta device and has no weights to export"


def _obstacles_of_parts(model: PreTrainedModel) -> Iterator[str]:
    """Yield the reasons why a model inside a detector or a classifier of features cannot be exported."""
    if isinstance(model, Detr3DForPointCloudObjectDetection) and (encoder := model.config.point_encoder_config):
        assert isinstance(encoder, PreTrainedConfig)
        allowed = _exported_in("detector")
        if encoder.model_type not in allowed:
            yield (
                f"point_encoder_config: a detector over {encoder.model_type} cannot be exported; expected 3DETR's own "
                f"encoder, or one of {', '.join(allowed)}"
            )
    kind = type_of_model(type(model))
    if kind is not None and kind.composition == "features":
        config: Any = model.config
        if "views" in config.features:
            yield f"features={list(config.features)}: depth views cannot be exported"
        allowed = _exported_in("features")
        for name in ("encoder", "wrap"):
            part = getattr(getattr(config, f"{name}_config"), "model_type", None)
            if part not in (None, *allowed):
                yield f"{name}_config of the type {part!r} cannot be exported; expected one of {', '.join(allowed)}"


def _exported_in(place: str) -> list[str]:
    """Return the model types that are exported as a part of other models."""
    return [name for name, kind in MODEL_TYPES.items() if place in kind.exported_in]


def _nearest(query: Tensor, points: Tensor, k: int, method: str) -> tuple[Tensor, Tensor]:
    """Compute `knn` with torch's operators, without writing in place."""
    query = query[..., :3].float()
    points = points[..., :3].float()
    x, y, z = (query.unsqueeze(2) - points.unsqueeze(1)).square().unbind(dim=-1)  # (batch, queries, points) each
    # Bits of non-negative floats sort like integers; the index in the lower half breaks ties.
    key = (x + y + z).view(torch.int32).long() << 32 | torch.arange(points.shape[1], device=points.device)
    key = key.topk(k, dim=-1, largest=False).values
    return key & 0xFFFFFFFF, (key >> 32).int().view(torch.float32)
