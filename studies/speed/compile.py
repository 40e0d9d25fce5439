"""Compare models compiled by `torch.compile(fullgraph=True)` with the same models uncompiled, on the CPU.

    python -m studies.speed.compile --output compile.json

Inference and training steps run in float32, uncompiled and compiled in turns in one process. Times are medians of the
processor time; compilation, with the first calls, is timed apart. Outputs, losses and gradients of both must agree.
Encoders have few layers, since compilation takes time for each.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel

from hf_any3d import (
    ActConfig,
    ActForPointCloudClassification,
    Any2PointConfig,
    Any2PointForPointCloudClassification,
    GuidedAdapterConfig,
    OpenShapeConfig,
    OpenShapeForPointCloudClassification,
    Uni3DConfig,
    Uni3DForPointCloudClassification,
)
from hf_any3d.modeling.encoders import freeze
from hf_any3d.utils.atomic_files import write_json
from studies.speed._measure import timed_in_turns
from studies.speed.any2point_wrapper import PRESETS

LABELS = 10


def any2point(preset: str, layers: int, **sizes: Any) -> nn.Module:
    """Build a classifier of Any2Point with guided adapters."""
    encoder, model, adapter = PRESETS[preset]
    encoder = dict(encoder) | {"num_hidden_layers": layers} | sizes
    config = AutoConfig.for_model(encoder.pop("model_type"), vocab_size=8, eos_token_id=2, **encoder)
    settings = dict(model) | {"num_labels": LABELS, "num_tokens": 128, "head_dropout": 0.0}
    base = AutoModel.from_config(config)
    made = Any2PointForPointCloudClassification(Any2PointConfig(encoder_config=config, **settings), freeze(base))
    return get_peft_model(made, GuidedAdapterConfig(**adapter))


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "Any2Point, MiniLM": lambda layers: any2point("minilm", layers),
    "Any2Point, CLIP": lambda layers: any2point("clip-text", layers),
    "ACT": lambda layers: ActForPointCloudClassification(
        ActConfig(num_hidden_layers=layers, num_labels=LABELS, drop_path_rate=0.0, head_dropout=0.0)
    ),
    "OpenShape": lambda layers: OpenShapeForPointCloudClassification(
        OpenShapeConfig(num_hidden_layers=layers, num_labels=LABELS)
    ),
    "Uni3D-base": lambda layers: Uni3DForPointCloudClassification(
        Uni3DConfig(num_hidden_layers=layers, num_labels=LABELS)
    ),
}


def measure(
    build: Callable[[int], nn.Module], layers: int, batch: int, points: int, rounds: int, backend: str
) -> dict[str, float]:
    """Time a model's inference and training step, uncompiled and compiled.

    Returns:
        Milliseconds `inference`, `inference_compiled`, `step`, `step_compiled`; seconds `compilation` of both; largest
        relative differences `difference` of outputs and `gradient_difference` of gradients.

    Raises:
        ValueError: If results differ by more than 1e-4 of their largest number, or gradients by more than 1e-2.
    """
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = build(layers)
    other = copy.deepcopy(plain)
    channels = plain.config.in_channels
    clouds = torch.rand(batch, points, channels) - 0.5  # (batch, points, channels)
    labels = torch.arange(batch) % LABELS
    compiled = torch.compile(other, backend=backend, fullgraph=True)

    def infer(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(points=clouds).logits

    def step(model: nn.Module) -> torch.Tensor:
        loss = model(points=clouds, labels=labels).loss
        loss.backward()
        return loss

    start = time.process_time()
    plain.train(), other.train()
    loss, made = step(plain), step(compiled)
    grads = [(p.grad, q.grad) for p, q in zip(plain.parameters(), other.parameters(), strict=True)]
    pairs = [(one, two) for one, two in grads if one is not None and two is not None]
    if len(pairs) != sum(one is not None or two is not None for one, two in grads):
        raise ValueError("other parameters have gradients in the compiled model")
    gradients = tuple(torch.cat([side.flatten() for side in sides]) for sides in zip(*pairs, strict=True))
    found = {"gradient_difference": _difference(gradients[1], gradients[0])}
    plain.eval(), other.eval()
    found["difference"] = max(_difference(infer(compiled), infer(plain)), _difference(made, loss))
    # A maximum over points that are equal but for rounding may pass its gradient to another one.
    if not (found["difference"] < 1e-4 and found["gradient_difference"] < 1e-2):
        raise ValueError(f"compiled and uncompiled results differ: {found}")
    found["compilation"] = time.process_time() - start
    for name, run in (("inference", infer), ("step", step)):
        plain.train(name == "step"), other.train(name == "step")
        sides = {name: lambda run=run: run(plain), f"{name}_compiled": lambda run=run: run(compiled)}
        spent = timed_in_turns(sides, rounds)
        found |= {side: 1000 * statistics.median(one.cpu for one in times) for side, times in spent.items()}
    return found


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def main(arguments: list[str] | None = None) -> None:
    """Time the models and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("| model | inference ms, compiled | ratio | step ms, compiled | ratio | compilation s | difference |")
    print("|---|---|---|---|---|---|---|")
    results = {}
    for name in options.models:
        sizes = (options.layers, options.batch, options.points, options.rounds, options.backend)
        row = results[name] = measure(MODELS[name], *sizes)
        cells = [name]
        for what in ("inference", "step"):
            once, compiled = row[what], row[f"{what}_compiled"]
            cells += [f"{once:.0f}, {compiled:.0f}", f"{compiled / once:.2f}"]
        worst = max(row["difference"], row["gradient_difference"])
        print("| " + " | ".join([*cells, f"{row['compilation']:.0f}", f"{worst:.0e}"]) + " |", flush=True)
    if options.output:
        write_json(options.output, {"options": {**vars(options), "output": None}, "results": results})


if __name__ == "__main__":
    main()
