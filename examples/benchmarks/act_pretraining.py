"""Time and memory of an ACT pretraining step against a plain transcription of the method, in one process.

    python examples/benchmarks/act_pretraining.py --preset published --output act_pretraining.json

Forward and backward in float32 on the same clouds, masks and weights. First both have to give the same loss and the
same gradients; then they take turns. Beside wall time stands the processor's time for this process, with which other
work on the machine interferes less. Saved bytes are what autograd keeps for the backward pass, every storage counted
once, parameters left out.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _examples  # noqa: F401  lets the others of this folder be imported
import torch
from _act_transcription import pretraining_loss
from _saved_bytes import saved_bytes, storages
from transformers import AutoConfig

from hf_any3d import ActAutoencoder, ActAutoencoderConfig, ActConfig, ActForPreTraining
from hf_any3d.atomic_files import write_json
from hf_any3d.modeling.act.masking import random_mask
from hf_any3d.modeling.point_transformer.blocks import DropPath

TRANSCRIPTION = "transcription"
# What the released program does: all patches go through the student's mini-PointNet, the teacher is in training mode.
RELEASED = {"encode_visible_only": False, "teacher_in_training_mode": True}
SOUND = {"encode_visible_only": True, "teacher_in_training_mode": False}
# Teacher, autoencoder, student.
PRESETS: dict[str, tuple[dict, dict, dict]] = {
    "published": (
        dict(model_type="vit", num_hidden_layers=12, num_attention_heads=12, hidden_size=768, intermediate_size=3072),
        {},
        {},
    ),
    "small": (
        dict(model_type="bert", num_hidden_layers=6, num_attention_heads=12, hidden_size=384, intermediate_size=1536),
        dict(num_groups=32, num_codes=1024, num_prompts=16, hidden_size=192, graph_widths=(128, 128, 256, 256)),
        dict(num_groups=32, num_hidden_layers=6, num_attention_heads=3, hidden_size=192, class_token_layer=3),
    ),
    "tiny": (
        dict(model_type="vit", num_hidden_layers=2, num_attention_heads=2, hidden_size=32, intermediate_size=64),
        dict(num_groups=8, group_size=8, num_codes=16, num_prompts=4, hidden_size=16, graph_widths=(8, 8, 8, 8)),
        dict(num_groups=8, group_size=8, num_hidden_layers=2, num_attention_heads=2, hidden_size=16),
    ),
}
_UNREAD = {"image_size": 32, "vocab_size": 8, "max_position_embeddings": 8}


def build(preset: str) -> ActForPreTraining:
    """A model of random weights, in training mode."""
    teacher, autoencoder, student = PRESETS[preset]
    settings = {name: value for name, value in (_UNREAD | teacher).items() if name != "model_type"}
    encoder_config = AutoConfig.for_model(teacher["model_type"], **settings)
    autoencoder_config = ActAutoencoderConfig(encoder_config=encoder_config, **autoencoder)
    config = ActConfig(autoencoder_config=autoencoder_config, **student)
    return ActForPreTraining(config, ActAutoencoder(autoencoder_config)).train()


def choose(model: ActForPreTraining, settings: dict[str, Any]) -> None:
    """Switch fields of the config that are read when the model runs."""
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.train()


def without_chance(model: ActForPreTraining) -> ActForPreTraining:
    """The same model, a copy, without dropout and drop path."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.rate = 0.0
    return model


def largest_difference(model: ActForPreTraining, points: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """How far loss and gradients of both are apart, relative to the loss and to the largest gradient of each tensor.

    Raises:
        AssertionError: If they are not the same step: losses beyond 1e-5, gradients beyond 1e-2.
    """
    model = without_chance(model)
    choose(model, RELEASED)
    noise = torch.zeros(*mask.shape, model.autoencoder.config.num_codes).exponential_().log_().neg_()
    results = []
    for step in (lambda: pretraining_loss(model, points, mask, noise), lambda: model(points, mask, noise).loss):
        model.zero_grad()
        loss = step()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss.item(), gradients))
    (loss, gradients), (our_loss, our_gradients) = results
    assert gradients.keys() == our_gradients.keys()
    # Biases in front of a batch norm: their gradient is zero but for rounding.
    largest = max(gradient.norm() for gradient in gradients.values())
    apart = {
        name: ((gradient - our_gradients[name]).abs().max() / gradient.abs().max()).item()
        for name, gradient in gradients.items()
        if gradient.norm() > 1e-4 * largest
    }
    worst = max(apart.values())
    relative = abs(loss - our_loss) / abs(loss)
    assert relative < 1e-5 and worst < 1e-2, (relative, max(apart, key=apart.get), worst)
    return {"loss": relative, "gradients": worst}


def measure(preset: str, batch: int, points: int, rounds: int) -> dict[str, Any]:
    """Check that both are the same step, then measure them in turns."""
    torch.manual_seed(0)
    model = build(preset)
    half = copy.deepcopy(model)
    half.autoencoder.encoder.to(torch.bfloat16)
    clouds = torch.rand(batch, points, 3) - 0.5  # (batch, points, 3)
    groups = model.config.num_groups
    mask = random_mask(torch.zeros(batch, groups, 3), int(model.config.mask_ratio * groups))
    difference = largest_difference(model, clouds, mask)

    def ours(of: ActForPreTraining, settings: dict[str, Any]) -> Callable[[], torch.Tensor]:
        def step() -> torch.Tensor:
            choose(of, settings)
            return of(clouds, mask).loss

        return step

    def transcription() -> torch.Tensor:
        choose(model, RELEASED)
        return pretraining_loss(model, clouds, mask)

    steps = {
        TRANSCRIPTION: transcription,
        "ours, as released": ours(model, RELEASED),
        "ours, default": ours(model, SOUND),
        "ours, teacher in bfloat16": ours(half, SOUND),
    }
    parameters = storages(model, half)
    kept = {name: saved_bytes(step, parameters) for name, step in steps.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    # The first round warms up.
    for number in range(rounds + 1):
        for name, step in steps.items():
            for of in (model, half):
                of.zero_grad()
            wall, processor = time.perf_counter(), time.process_time()
            step().backward()
            spent = time.perf_counter() - wall, time.process_time() - processor
            seconds[name] += [spent] * (number > 0)
    return {
        "preset": preset,
        "batch": batch,
        "points": points,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "difference": difference,
        "rows": {name: _row(seconds[name], seconds[TRANSCRIPTION], kept[name], kept, batch) for name in steps},
    }


def _row(
    spent: list[tuple[float, float]], plain: list[tuple[float, float]], saved: int, kept: dict[str, int], batch: int
) -> dict[str, float]:
    wall, processor = (statistics.median(column) for column in zip(*spent, strict=True))
    # Round by round, so that what else the machine does meets both.
    ratios = [theirs[1] / own[1] for theirs, own in zip(plain, spent, strict=True)]
    return {
        "processor_ms_per_cloud": 1000 * processor / batch,
        "wall_ms_per_cloud": 1000 * wall / batch,
        "times_faster": statistics.median(ratios),
        "times_faster_least": min(ratios),
        "times_faster_most": max(ratios),
        "saved_MB_per_cloud": saved / batch / 1e6,
        "times_fewer_bytes": kept[TRANSCRIPTION] / saved,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="published")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.preset, arguments.batch, arguments.points, arguments.rounds)
    apart = result["difference"]
    print(f"{result['preset']}, batch {result['batch']}, {result['points']} points, {result['threads']} thread(s)")
    print(f"the same step: loss to {apart['loss']:.1e}, gradients to {apart['gradients']:.1e}")
    print(
        "| forward + backward | processor ms a cloud | wall ms | times faster (least, most) | saved MB | times fewer |"
    )
    print("|---|---|---|---|---|---|")
    for name, row in result["rows"].items():
        print(
            f"| {name} | {row['processor_ms_per_cloud']:.0f} | {row['wall_ms_per_cloud']:.0f} "
            f"| {row['times_faster']:.2f} ({row['times_faster_least']:.2f}, {row['times_faster_most']:.2f}) "
            f"| {row['saved_MB_per_cloud']:.1f} | {row['times_fewer_bytes']:.2f} |"
        )
    if arguments.output:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
