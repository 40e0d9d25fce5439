"""What a model costs: floating point operations of inference and training, and clouds a second on this machine."""

import inspect
import itertools
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from hf_any3d.cli.model_facts import build_model, open_configs
from hf_any3d.data.inputs import count_channels
from hf_any3d.integration.registration import MODELS
from hf_any3d.modeling.kernels import set_kernels
from hf_any3d.pipelines.base import unwrapped
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.registry import FEATURES, pipeline_task

# Points of a cloud for processors that take any number of them, and the edges of the room on whose walls they lie.
_SCAN_POINTS, _ROOM = 10_000, (6.0, 4.0, 3.0)
_BATCH, _SECONDS = 8, 1.0
# Attention on the CPU, of which torch counts nothing, by torch's formulas for the same on a GPU.
_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: inspect.unwrap(sdpa_flop),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: inspect.unwrap(sdpa_backward_flop),
}
_UNIT = (
    "FLOPs of one cloud in matrix products and convolutions, a multiplication with its addition is two; a training "
    "step is forward and backward"
)


def model_cost(name_or_path: str, revision: str | None = None) -> dict[str, Any]:
    """Count the operations of inference and of a training step, and time inference on the fastest device.

    Neither depends on the values of weights, so these are random and none are loaded. The operations are those of the
    plain implementations, since torch counts none in autograd functions.

    Raises:
        ValueError: It is a model that writes text.
    """
    config, adapter = open_configs(name_or_path, revision)
    if any(head.can_generate() for head in itertools.chain(*MODELS[type(config)][1].values())):
        raise ValueError(f"{name_or_path}: --cost is not for models that write, whose cost grows with the text")
    model = build_model(config, adapter)
    processor = PointCloudProcessor.from_pretrained(name_or_path, revision=revision or "main")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model.to(device, dtype=config.dtype)
    # What the pipeline calls: a pretrained model answers without what its pretraining adds.
    answering = unwrapped(model).base_model if pipeline_task(config.architectures) == FEATURES else model
    cloud = _cloud(processor)
    single, pair, batch = ({**processor([cloud] * count).to(device)} for count in (1, 2, _BATCH))
    if "category" in inspect.signature(unwrapped(model).forward).parameters:
        for inputs in (single, pair, batch):
            inputs["category"] = torch.zeros(len(inputs["points"]), dtype=torch.long, device=device)
    inference = _count(answering.eval(), single)
    # Batch norms need two clouds in training.
    is_trained = any(parameter.requires_grad for parameter in model.parameters())
    training = _count(model.train(), pair) // 2 if is_trained else None
    model.eval()
    seconds = _time(answering, single)
    larger = _BATCH / _time(answering, batch) if seconds * _BATCH < _SECONDS else None
    on = f"{device.type}, threads: {torch.get_num_threads()}, {unwrapped(model).dtype}".replace("torch.", "")
    return {
        "FLOPs of inference": inference,
        "FLOPs of a training step": training,
        "clouds a second": float(f"{1 / seconds:.3g}"),
        f"clouds a second, {_BATCH} at a time": None if larger is None else float(f"{larger:.3g}"),
        "timed": f"forward pass, {on}, {single['points'].shape[1]:,} points",
        "counted": _UNIT,
    }


def _cloud(processor: PointCloudProcessor) -> np.ndarray:
    """Return points on the walls of a room, `(points, channels)`; colors and the like are 0."""
    count = processor.num_points if processor.returns_num_points else min(processor.num_points, _SCAN_POINTS)
    generator = np.random.default_rng(0)
    cloud = np.zeros((count, count_channels(processor.features)), np.float32)
    cloud[:, :3] = generator.random((count, 3))
    cloud[np.arange(count), generator.integers(3, size=count)] = generator.integers(2, size=count)
    cloud[:, :3] *= _ROOM
    return cloud


def _count(model: nn.Module, inputs: dict[str, Any]) -> int:
    """Count the operations of a forward pass, in training mode also those of the backward pass."""
    previous = set_kernels("torch")
    try:
        with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
            # With gradients also for inference, since the mode's hooks fail on parameters that are expanded without.
            output = model(**inputs)
            if model.training:
                # The loss has no matrix products, so the backward pass is that of any function of the outputs.
                sum(
                    value.float().sum() for value in output.values() if getattr(value, "requires_grad", False)
                ).backward()
        return counter.get_total_flops()
    finally:
        set_kernels(previous)


def _time(model: nn.Module, inputs: dict[str, Any]) -> float:
    """Return the median seconds of a forward pass."""
    with torch.no_grad():
        timer = Timer(
            "model(**inputs)", globals={"model": model, "inputs": inputs}, num_threads=torch.get_num_threads()
        )
        return timer.blocked_autorange(min_run_time=_SECONDS).median
