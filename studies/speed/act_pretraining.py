"""Compare time and memory of an ACT pretraining step with a plain transcription of the method.

    python -m studies.speed.act_pretraining --preset published --output act_pretraining.json

Both run forward and backward in float32 on the same clouds, masks and weights, in turns in one process, after a check
that losses and gradients are the same. Processor times depend less on other work on the machine than wall times. Saved
bytes are what autograd saves for the backward pass, without parameters.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from hf_any3d import ActAutoencoder, ActAutoencoderConfig, ActConfig, ActForPreTraining
from hf_any3d.modeling.act.masking import random_mask
from hf_any3d.modeling.point_encoders.point_transformer import DropPath
from hf_any3d.utils.atomic_files import write_json
from studies.speed._act_transcription import pretraining_loss
from studies.speed._measure import Spent, saved_bytes, storages, timed_in_turns

TRANSCRIPTION = "transcription"
# In the released program the student's mini-PointNet encodes all patches and the teacher is in training mode.
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
    """Build a model with random weights, in training mode."""
    teacher, autoencoder, student = PRESETS[preset]
    settings = {name: value for name, value in (_UNREAD | teacher).items() if name != "model_type"}
    encoder_config = AutoConfig.for_model(teacher["model_type"], **settings)
    autoencoder_config = ActAutoencoderConfig(encoder_config=encoder_config, **autoencoder)
    config = ActConfig(autoencoder_config=autoencoder_config, **student)
    return ActForPreTraining(config, ActAutoencoder(autoencoder_config)).train()


def choose(model: ActForPreTraining, settings: dict[str, Any]) -> None:
    """Set fields of the config that are read when the model runs."""
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.train()


def without_dropout(model: ActForPreTraining) -> ActForPreTraining:
    """Copy a model without dropout and drop path."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.rate = 0.0
    return model


def largest_difference(model: ActForPreTraining, points: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Compare loss and gradients of both, relative to the loss and to the largest gradient of each tensor.

    Raises:
        AssertionError: They are not the same step: losses differ by over 1e-5 or gradients by over 1e-2.
    """
    model = without_dropout(model)
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
    # Leaves out biases before a batch norm, whose gradient is zero except for rounding.
    largest = max(gradient.norm() for gradient in gradients.values())
    differences = {
        name: ((gradient - our_gradients[name]).abs().max() / gradient.abs().max()).item()
        for name, gradient in gradients.items()
        if gradient.norm() > 1e-4 * largest
    }
    worst = max(differences.values())
    relative = abs(loss - our_loss) / abs(loss)
    assert relative < 1e-5 and worst < 1e-2, (relative, max(differences, key=differences.get), worst)
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

    def ours(own: ActForPreTraining, settings: dict[str, Any]) -> Callable[[], torch.Tensor]:
        def step() -> torch.Tensor:
            choose(own, settings)
            return own(clouds, mask).loss

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
    saved = {name: saved_bytes(step, parameters) for name, step in steps.items()}

    def clear_gradients() -> None:
        model.zero_grad()
        half.zero_grad()

    passes = {name: lambda step=step: step().backward() for name, step in steps.items()}
    spent = timed_in_turns(passes, rounds, before=clear_gradients)
    return {
        "preset": preset,
        "batch": batch,
        "points": points,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "difference": difference,
        "rows": {name: _row(name, spent, saved, batch) for name in steps},
    }


def _row(name: str, spent: dict[str, list[Spent]], saved: dict[str, int], batch: int) -> dict[str, float]:
    wall, processor = (statistics.median(column) for column in zip(*spent[name], strict=True))
    # Ratios within a round, so that other work on the machine affects both.
    ratios = [theirs.cpu / own.cpu for theirs, own in zip(spent[TRANSCRIPTION], spent[name], strict=True)]
    return {
        "processor_ms_per_cloud": 1000 * processor / batch,
        "wall_ms_per_cloud": 1000 * wall / batch,
        "times_faster": statistics.median(ratios),
        "times_faster_least": min(ratios),
        "times_faster_most": max(ratios),
        "saved_MB_per_cloud": saved[name] / batch / 1e6,
        "times_fewer_bytes": saved[TRANSCRIPTION] / saved[name],
    }


def main() -> None:
    """Time a step of pretraining and print the figures."""
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
    difference = result["difference"]
    print(f"{result['preset']}, batch {result['batch']}, {result['points']} points, {result['threads']} thread(s)")
    print(f"the same step: loss to {difference['loss']:.1e}, gradients to {difference['gradients']:.1e}")
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
