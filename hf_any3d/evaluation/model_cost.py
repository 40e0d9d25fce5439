"""Cost of a model: floating point operations of inference and training, and clouds a second on this machine."""

import inspect
import itertools
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from hf_any3d.data.inputs import count_channels
from hf_any3d.evaluation.model_facts import build_model, open_configs
from hf_any3d.integration.registration import MODELS
from hf_any3d.modeling.kernels import set_kernels
from hf_any3d.modeling.records import FEATURES
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.registry import pipeline_task
from hf_any3d.tasks.steps import unwrapped

# Points for processors that take any number of them, and the edges of the room on whose walls all points lie.
_SCAN_POINTS, _ROOM = 10_000, (6.0, 4.0, 3.0)
_BATCH, _SECONDS = 8, 1.0
# Attention on the CPU, of which torch counts nothing, by its formulas for the same on a GPU.
_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: inspect.unwrap(sdpa_flop),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: inspect.unwrap(sdpa_backward_flop),
}
_COUNTED = (
    "matrix products and convolutions of one cloud, a multiply-add as two; a training step is forward and backward"
)


class CostGrowsError(ValueError):
    """A model that writes, whose cost grows with the text."""


def model_cost(name_or_path: str, revision: str | None = None) -> dict[str, Any]:
    """Count operations, and time inference on the fastest device, with random weights and a generated cloud.

    Raises:
        CostGrowsError: The model writes text.
    """
    config, adapter = open_configs(name_or_path, revision)
    if any(head.can_generate() for head in itertools.chain(*MODELS[type(config)][1].values())):
        raise CostGrowsError(f"{name_or_path}: no cost of models that write, whose cost grows with the text")
    model = build_model(config, adapter)
    processor = PointCloudProcessor.from_pretrained(name_or_path, revision=revision or "main")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model.to(device, dtype=config.dtype)
    # As in the pipeline, a pretrained model answers without what its pretraining adds.
    answering = unwrapped(model).base_model if pipeline_task(config.architectures) == FEATURES else model
    # Points on the walls of a room, `(points, channels)`; colors and the like are 0
    count = processor.num_points if processor.returns_num_points else min(processor.num_points, _SCAN_POINTS)
    generator = np.random.default_rng(0)
    xyz = generator.random((count, 3))
    xyz[np.arange(count), generator.integers(3, size=count)] = generator.integers(2, size=count)
    cloud = np.hstack([xyz * _ROOM, np.zeros((count, count_channels(processor.features) - 3))])
    # Batch norms need two clouds in training.
    single, pair, batch = ({**processor([cloud] * count).to(device)} for count in (1, 2, _BATCH))
    if "category" in inspect.signature(unwrapped(model).forward).parameters:
        for inputs in (single, pair, batch):
            inputs["category"] = torch.zeros(len(inputs["points"]), dtype=torch.long, device=device)
    operations = _count(answering.eval(), single), _count(model.train(), pair) // 2
    model.eval()
    seconds = _time(answering, single)
    larger = _BATCH / _time(answering, batch) if seconds * _BATCH < _SECONDS else None
    on = f"{device.type}, threads: {torch.get_num_threads()}, {unwrapped(model).dtype}".replace("torch.", "")
    return {
        "FLOPs of inference": operations[0],
        "FLOPs of a training step": operations[1],
        "FLOPs count": _COUNTED,
        "clouds a second": float(f"{1 / seconds:.3g}"),
        f"clouds a second, {_BATCH} at a time": larger and float(f"{larger:.3g}"),
        "timed": f"forward pass, {on}, {single['points'].shape[1]:,} points",
    }


def _count(model: Any, inputs: dict[str, Any]) -> int:
    """Count the operations of a forward pass, in training mode also those of the backward pass."""
    # Of fused implementations, autograd functions, torch would count nothing.
    previous = set_kernels("torch")
    try:
        with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
            # With gradients in any mode: without, the counter's hooks fail on parameters that a model expands.
            values = [value for value in model(**inputs).values() if getattr(value, "requires_grad", False)]
            if model.training and values:
                # A loss has no matrix products, so any function of the outputs has its backward pass.
                torch.autograd.backward(values, [torch.ones_like(value) for value in values])
        return counter.get_total_flops()
    finally:
        set_kernels(previous)


def _time(model: Any, inputs: dict[str, Any]) -> float:
    """Return the median seconds of a forward pass."""
    names = {"model": model, "inputs": inputs}
    with torch.no_grad():
        timer = Timer("model(**inputs)", globals=names, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=_SECONDS).median
