"""Lay out training on many GPUs: bytes that a step sends, and what that costs at a measured step time.

    python -m studies.speed.scale_plan --step_seconds any2point=0.2 act=0.1 --gpus 1 8 64
    python -m studies.speed.scale_plan --measure

Bytes are computed from the models: gradients of trained parameters in float32 (DDP, ring all-reduce), statistics of
the joined batch norms, and for FSDP2 the layers that are gathered in both passes. Step times must be measured, on the
device that the plan is for: `--measure` times this machine's CPU, one thread. Times assume

- the bandwidth and latency of the slowest link, given by --gigabytes and --microseconds, for every exchange;
- no overlap of communication with computation, so they are upper bounds; DDP overlaps most of it;
- loading that keeps up, and equally fast devices.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig

from hf_any3d import (
    ActConfig,
    ActForPointCloudClassification,
    Any2PointConfig,
    Any2PointForPointCloudClassification,
    GuidedAdapterConfig,
)
from hf_any3d.tuners.guided_adapter.module import CellNorm

_VIT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
BUCKET = 25 * 2**20
"""Bytes of gradients that DDP exchanges at once."""


@dataclass
class Plan:
    """Memory and traffic of a training step.

    Args:
        trained: Trained parameters.
        frozen: Frozen parameters.
        norms: Channels of batch norms, over all norms.
        exchanges: Number of batch norms.
    """

    trained: int
    frozen: int
    norms: int
    exchanges: int

    def ddp_bytes(self, gpus: int) -> float:
        """Return the bytes that each GPU sends in a step with DDP."""
        return 2 * (gpus - 1) / gpus * (4 * self.trained + self.norm_bytes())

    def norm_bytes(self) -> int:
        """Return the bytes of joined batch norms: mean, squares and two gradients per channel, and the count."""
        return 4 * (4 * self.norms + self.exchanges)

    def fsdp_bytes(self, gpus: int) -> float:
        """Return the bytes that each GPU sends with FSDP2 in bfloat16: weights gathered twice, gradients once."""
        weights = 2 * (2 * (self.trained + self.frozen) + self.trained)
        return (gpus - 1) / gpus * (weights + 2 * self.norm_bytes())

    def ddp_exchanges(self) -> int:
        """Return how often the GPUs wait for each other in a step with DDP."""
        return -(-4 * self.trained // BUCKET) + 4 * self.exchanges


def any2point() -> nn.Module:
    """CLIP's ViT-B/16 with guided adapters, published sizes."""
    encoder = AutoConfig.for_model("clip_vision_model", patch_size=16, **_VIT)
    config = Any2PointConfig(encoder_config=encoder, num_labels=40)
    return get_peft_model(Any2PointForPointCloudClassification(config), GuidedAdapterConfig())


def act() -> nn.Module:
    """ACT's student, everything trained."""
    return ActForPointCloudClassification(ActConfig(num_labels=40))


MODELS: dict[str, Callable[[], nn.Module]] = {"any2point": any2point, "act": act}


def plan_of(model: nn.Module) -> Plan:
    """Count what a model exchanges; weights may be on the meta device."""
    trained = sum(own.numel() for own in model.parameters() if own.requires_grad)
    norms = [
        module
        for module in model.modules()
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, CellNorm))
        and any(own.requires_grad for own in module.parameters(recurse=False))
    ]
    channels = sum(next(norm.parameters(recurse=False)).numel() for norm in norms)
    frozen = sum(own.numel() for own in model.parameters()) - trained
    return Plan(trained, frozen, channels, len(norms))


def measured(model: nn.Module, batch: int, points: int = 1024, steps: int = 3) -> float:
    """Return the processor seconds of a step, forward and backward, of the fastest of some."""
    clouds, labels = torch.randn(batch, points, 3), torch.arange(batch) % 40
    spent = []
    model.train()
    for _ in range(steps):
        start = time.process_time()
        model(points=clouds, labels=labels).loss.backward()
        spent.append(time.process_time() - start)
    return min(spent)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64], help="numbers of GPUs")
    parser.add_argument("--step_seconds", nargs="*", default=[], help="MODEL=SECONDS of a step, measured on one GPU")
    parser.add_argument("--measure", action="store_true", help="measure steps here, on one CPU thread")
    parser.add_argument("--batch", type=int, default=8, help="clouds of a measured step")
    parser.add_argument("--gigabytes", type=float, default=25.0, help="bandwidth of the slowest link, per second")
    parser.add_argument("--microseconds", type=float, default=50.0, help="latency of an exchange")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seconds = {name: float(value) for name, _, value in (given.partition("=") for given in options.step_seconds)}
    if unknown := sorted(set(seconds) - set(MODELS)):
        parser.error(f"--step_seconds names {unknown[0]!r}; expected {', '.join(MODELS)}")
    names = "model", "GPUs", "trained", "frozen", "DDP sends, MB", "FSDP2 sends, MB", "exchanges", "ms", "step, s"
    print(f"| {' | '.join(names)} | efficiency |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, build in MODELS.items():
        with torch.device("meta"):
            plan = plan_of(build())
        if options.measure:
            seconds[name] = measured(build(), options.batch)
        for gpus in options.gpus:
            sent, exchanges = plan.ddp_bytes(gpus), plan.ddp_exchanges() if gpus > 1 else 0
            extra = sent / (options.gigabytes * 1e9) + exchanges * options.microseconds * 1e-6
            step = seconds.get(name)
            last = "— | —" if step is None else f"{step + extra:.3f} | {step / (step + extra):.1%}"
            print(
                f"| {name} | {gpus} | {plan.trained:,} | {plan.frozen:,} | {sent / 1e6:.1f} | "
                f"{plan.fsdp_bytes(gpus) / 1e6:.1f} | {exchanges} | {1e3 * extra:.1f} | {last} |"
            )


if __name__ == "__main__":
    main()
