"""Measure 3DETR-m at its released size, with random weights: a training step, and boxes of one cloud.

    python -m studies.speed.detr3d --output detr3d.json

A training step takes turns with its transcription (`_detr3d_transcription`), after loss and gradients of both were
found equal, and with bare layers: stock layers of torch as many and as wide, on as many tokens and queries. Inference
is by the model and by the pipeline, which also chooses among the boxes, and of the bare layers. Times are processor
times of one thread; ratios are medians of the rounds' ratios. Saved bytes are what autograd saves for the backward
pass, without parameters.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.pipelines import PointCloudObjectDetectionPipeline
from hf_any3d.utils.atomic_files import write_json
from studies.runs import machine
from studies.speed._detr3d_transcription import BareLayers, training_loss
from studies.speed._measure import Spent, check_same_step, saved_bytes, storages, timed_in_turns
from studies.speed.large_scene import rooms

BARE = "bare layers"


def scene(points: int, objects: int = 12) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the cloud `(1, points, 3)` of a room, and boxes at some of its points."""
    generator = torch.Generator().manual_seed(0)
    cloud = torch.from_numpy(rooms(points).points.astype(np.float32))[None]
    places = cloud[0, torch.randint(points, (objects,), generator=generator)]
    sizes = 0.3 + torch.rand(objects, 3, generator=generator)
    headings = 6 * torch.rand(objects, 1, generator=generator) - 3
    classes = torch.randint(10, (objects,), generator=generator)
    return cloud, {"class_labels": classes, "boxes": torch.cat([places, sizes, headings], dim=1)}


def measure(points: int, rounds: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Measure training and inference of a detector with these settings of its config.

    Raises:
        SystemExit: The transcription is another step.
    """
    torch.manual_seed(0)
    model: Any = Detr3DForPointCloudObjectDetection(Detr3DConfig(**{"num_labels": 10, **settings})).train()
    config = model.config
    cloud, labels = scene(points)
    bare = BareLayers(model).train()
    tokens = torch.randn(1, config.num_tokens, config.encoder_hidden_size, requires_grad=True)
    queries = torch.randn(1, config.num_queries, config.hidden_size, requires_grad=True)
    difference = largest_difference(model, cloud, [labels])
    steps: dict[str, Callable[[], torch.Tensor]] = {
        BARE: lambda: bare(tokens, queries).sum(),
        "3DETR-m": lambda: model(points=cloud, labels=[labels]).loss,
        "transcription": partial(training_loss, model, cloud, [labels]),
    }
    known = storages(model, bare)
    saved = {name: saved_bytes(step, known) for name, step in steps.items()}
    passes = {name: lambda step=step: step().backward() for name, step in steps.items()}
    spent = timed_in_turns(passes, rounds, before=partial(clear, model, bare))
    model.eval()
    bare.eval()
    processor = PointCloudProcessor(num_points=points, center=False, scale=None, up_axis="z")
    detect = PointCloudObjectDetectionPipeline(model, feature_extractor=processor, device="cpu")
    array = cloud[0].numpy()
    inference: dict[str, Callable[[], Any]] = {
        BARE: lambda: bare(tokens, queries),
        "3DETR-m": lambda: model(points=cloud),
        "pipeline": lambda: detect(array, threshold=0.05),
    }
    with torch.inference_mode():
        inferred = timed_in_turns(inference, rounds)
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "points": points,
        "rounds": rounds,
        "difference": difference,
        "step": {name: row(times, spent[BARE]) | {"saved_MB": saved[name] / 1e6} for name, times in spent.items()},
        "inference": {name: row(times, inferred[BARE]) for name, times in inferred.items()},
    }


def clear(*modules: nn.Module) -> None:
    """Forget the gradients of modules."""
    for module in modules:
        module.zero_grad(set_to_none=True)


def row(times: Sequence[Spent], base: Sequence[Spent]) -> dict[str, float]:
    """Return the median of processor seconds, and of the ratios to the bare layers of the same round."""
    ratios = [one.cpu / other.cpu for one, other in zip(times, base, strict=True)]
    return {"seconds": statistics.median(one.cpu for one in times), "times_bare": statistics.median(ratios)}


def largest_difference(
    model: Detr3DForPointCloudObjectDetection, cloud: torch.Tensor, labels: Sequence[Mapping[str, torch.Tensor]]
) -> dict[str, float]:
    """Compare loss and gradients of a step with those of its transcription, without dropout.

    Returns:
        The difference of the losses relative to the loss, and the largest of the norms of the gradients' differences
        relative to the norm of each tensor's gradient.

    Raises:
        SystemExit: They are not the same step: losses differ by over 1e-4 or gradients by over 5e-2.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            vars(module)["dropout"] = 0.0  # of attention weights
    steps = (lambda: training_loss(model, cloud, labels), lambda: model(points=cloud, labels=list(labels)).loss)
    return check_same_step(model, steps, losses=1e-4, gradients=5e-2)


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments.points, arguments.rounds, {})
    loss, gradients = result["difference"]["loss"], result["difference"]["gradients"]
    print(f"the transcription is the same step: loss to {loss:.1e}, gradients to {gradients:.1e}")
    print("| forward + backward | seconds | times bare layers | saved MB |\n|---|---|---|---|")
    for name, one in result["step"].items():
        print(f"| {name} | {one['seconds']:.2f} | {one['times_bare']:.2f} | {one['saved_MB']:.0f} |")
    print("| inference | seconds | times bare layers |\n|---|---|---|")
    for name, one in result["inference"].items():
        print(f"| {name} | {one['seconds']:.2f} | {one['times_bare']:.2f} |")
    if arguments.output:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
