"""Compare time and memory of an Any2Point training step with the bare frozen layers on as many tokens.

    python -m studies.speed.any2point_wrapper --preset clip-scan --output wrapper.json

All run forward and backward in float32, in turns in one process; gradients reach the tokens in all of them. Times are
processor times of this process, which depend little on other work on the machine; their ratios are medians of the
rounds' ratios. Saved bytes are what autograd saves for the backward pass, without parameters.

Inference, by the model and by the pipeline (which prepares the clouds, too), is compared with inference of the bare
layers. "Indexed before" is the step whose centers and neighbors were found where the batch was made. With `--bfloat16`
the bare layers and the step are also measured with frozen layers in bfloat16, and the latter under autocast, as
`bf16: true` of the Trainer runs it. The preset "clip-scan" is also compared
with a transcription of the method, after loss and gradients of both were found equal.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel

from hf_any3d import (
    Any2PointConfig,
    Any2PointForPointCloudClassification,
    GuidedAdapterConfig,
    PointCloudProcessor,
)
from hf_any3d.conversions.any2point import VARIANTS
from hf_any3d.modeling.any2point import PointIndexer
from hf_any3d.modeling.any2point.small_data_defaults import LIGHT, LIGHT_ADAPTER
from hf_any3d.modeling.encoders import freeze
from hf_any3d.pipelines import PointCloudClassificationPipeline
from hf_any3d.utils.atomic_files import write_json
from studies.speed._any2point_transcription import training_loss
from studies.speed._measure import Spent, check_same_step, saved_bytes, storages, timed_in_turns

CLIP_SCAN = VARIANTS["clip-scan"]
TRANSCRIBED = "clip-scan"
# Encoder, model, adapter. "minilm" is what `from_encoder_pretrained` makes of an encoder, "clip-text" the config's own
# defaults.
PRESETS: dict[str, tuple[dict, dict, dict]] = {
    "minilm": (
        dict(model_type="bert", hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
        LIGHT | dict(num_labels=18),
        LIGHT_ADAPTER,
    ),
    "clip-text": (CLIP_SCAN.encoder, dict(num_labels=18), {}),
    # The released configuration with its quirks: the frozen layers attend over the clouds of the batch.
    "clip-scan": (CLIP_SCAN.encoder, CLIP_SCAN.model, CLIP_SCAN.adapter),
}


class Built(NamedTuple):
    """A model of a preset, its bare layers, and inputs of both."""

    model: PeftModel
    layers: list[nn.Module]
    config: Any2PointConfig
    clouds: torch.Tensor
    labels: torch.Tensor
    point_index: dict[str, Any]
    sequence: torch.Tensor


def build(
    preset: str, batch: int, points: int = 1024, tokens: int | None = None, neighbors: int | None = None
) -> Built:
    """Build the model of a preset with random weights, in training."""
    torch.manual_seed(0)
    encoder_settings, model_settings, adapter_settings = PRESETS[preset]
    settings = dict(encoder_settings)
    encoder_config = AutoConfig.for_model(settings.pop("model_type"), vocab_size=8, eos_token_id=2, **settings)
    encoder = AutoModel.from_config(encoder_config)
    # As transformers builds it: the model fuses activations, and a config inside another one loses its attention.
    bare_encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
    chosen = {"num_tokens": tokens, "tokenizer_neighbors": neighbors}
    chosen = dict(model_settings) | {name: number for name, number in chosen.items() if number is not None}
    config = Any2PointConfig(encoder_config=encoder.config, **chosen)
    model = Any2PointForPointCloudClassification(config, freeze(encoder))
    layers = list(model.any2point.family.layers_of(bare_encoder))
    clouds = torch.rand(batch, points, 3) - 0.5  # (batch, points, 3)
    labels = torch.arange(batch) % config.num_labels
    length = config.num_tokens + 1
    shape = (length, batch) if config.released.attention_axis == "batch" else (batch, length)
    sequence = torch.randn(*shape, encoder.config.hidden_size, requires_grad=True)
    adapted = get_peft_model(model, GuidedAdapterConfig(**adapter_settings)).train()
    return Built(adapted, layers, config, clouds, labels, PointIndexer(config)(clouds), sequence)


def measure(
    preset: str,
    batch: int,
    points: int,
    tokens: int | None,
    neighbors: int | None,
    repeats: int,
    bfloat16: bool = False,
) -> dict:
    """Measure the bare layers, the tokenizer alone and the whole model."""
    built = build(preset, batch, points, tokens, neighbors)
    adapted, layers, config = built.model, built.layers, built.config
    clouds, labels, point_index, sequence = built.clouds, built.labels, built.point_index, built.sequence
    base: Any = adapted.base_model.model.any2point

    def bare(layers: Sequence[nn.Module]) -> torch.Tensor:
        hidden_states = sequence.to(next(layers[0].parameters()).dtype)
        for layer in layers:
            hidden_states = layer(hidden_states, attention_mask=None, is_causal=False)
        return hidden_states.sum()

    def tokenizer() -> torch.Tensor:
        return base.point_tokenizer(clouds).tokens.sum()

    def wrapped(model: nn.Module, **index: Any) -> torch.Tensor:
        return model(points=clouds, labels=labels, **index).loss

    steps: dict[str, Callable[[], torch.Tensor]] = {
        "bare layers": partial(bare, layers),
        "tokenizer": tokenizer,
        "whole model": partial(wrapped, adapted),
        "whole model, indexed before": partial(wrapped, adapted, point_index=point_index),
    }
    difference = None
    if preset == TRANSCRIBED:
        difference = largest_difference(adapted, clouds, labels)
        steps["transcription"] = partial(training_loss, adapted, clouds, labels)
    parameters = storages(adapted, *layers)
    rounded, half = adapted, layers
    if bfloat16:
        rounded, half = copy.deepcopy(adapted), [copy.deepcopy(layer).bfloat16() for layer in layers]
        for parameter in rounded.parameters():
            # In place, so that names and sharing stay; trained parameters keep full precision.
            parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()
        steps["bare layers in bfloat16"] = partial(bare, half)
        steps["frozen layers in bfloat16, indexed before"] = partial(wrapped, rounded, point_index=point_index)
        steps["the same under autocast"] = torch.autocast("cpu", torch.bfloat16)(
            partial(wrapped, rounded, point_index=point_index)
        )
        parameters |= storages(rounded, *half)
    saved = {name: saved_bytes(step, parameters) for name, step in steps.items()}
    passes = {name: lambda step=step: step().backward() for name, step in steps.items()}
    spent = timed_in_turns(passes, repeats, before=partial(adapted.zero_grad, set_to_none=True))
    seconds = {name: statistics.median(one.cpu for one in times) for name, times in spent.items()}
    ratios = {name: ratio(times, spent["bare layers"]) for name, times in spent.items()}
    adapted.eval()
    processor = PointCloudProcessor(num_points=points)
    arrays = list(clouds.numpy())

    def pipeline(model: nn.Module) -> Callable[[], Any]:
        classify = PointCloudClassificationPipeline(model, feature_extractor=processor, device="cpu")
        return lambda: classify(arrays, batch_size=batch)

    inference: dict[str, Callable[[], Any]] = {
        "bare layers": lambda: bare(layers),
        "whole model": lambda: adapted(points=clouds),
        "pipeline": pipeline(adapted),
    }
    if bfloat16:
        inference["bare layers in bfloat16"] = lambda: bare(half)
        inference["pipeline, frozen layers in bfloat16"] = pipeline(rounded.eval())
        inference["pipeline, whole model in bfloat16"] = pipeline(copy.deepcopy(rounded).bfloat16())
    with torch.inference_mode():
        inferred = timed_in_turns(inference, repeats)
    return {
        "preset": preset,
        "batch": batch,
        "points": points,
        "tokens": config.num_tokens,
        "neighbors": config.tokenizer_neighbors,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "difference": difference,
        "rows": {
            name: {
                "ms_per_cloud": 1000 * seconds[name] / batch,
                "saved_MB_per_cloud": saved[name] / batch / 1e6,
                "times_bare_time": ratios[name],
                "times_bare_memory": saved[name] / saved["bare layers"],
            }
            for name in steps
        },
        "inference": {
            name: {
                "ms_per_cloud": 1000 * statistics.median(one.cpu for one in times) / batch,
                "times_bare_time": ratio(times, inferred["bare layers"]),
            }
            for name, times in inferred.items()
        },
    }


def largest_difference(model: PeftModel, points: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Compare loss and gradients of a step with those of its transcription, without dropout.

    Returns:
        The difference of the losses relative to the loss, and the largest of the norms of the gradients' differences
        relative to the norm of each tensor's gradient.

    Raises:
        SystemExit: They are not the same step: losses differ by over 1e-5 or gradients by over 1e-2.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    steps = (lambda: training_loss(model, points, labels), lambda: model(points=points, labels=labels).loss)
    return check_same_step(model, steps, losses=1e-5, gradients=1e-2)


def ratio(times: list[Spent], base: list[Spent]) -> float:
    """Return the median over the rounds of the ratios of processor times."""
    return statistics.median(one.cpu / other.cpu for one, other in zip(times, base, strict=True))


def main() -> None:
    """Time the wrapper and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="clip-scan")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--tokens", type=int, help="tokens of a cloud; by default as in the preset")
    parser.add_argument("--neighbors", type=int, help="points per neighborhood; by default as in the preset")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", help="also measure frozen layers in bfloat16")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = ("preset", "batch", "points", "tokens", "neighbors", "repeats", "bfloat16")
    result = measure(**{name: getattr(arguments, name) for name in chosen})
    print(f"{result['preset']}, batch {result['batch']}, {result['tokens']} tokens, k = {result['neighbors']}")
    if (difference := result["difference"]) is not None:
        loss, gradients = difference["loss"], difference["gradients"]
        print(f"the transcription is the same step: loss to {loss:.1e}, gradients to {gradients:.1e}")
    print("| forward + backward | ms a cloud | saved MB a cloud | times bare time | times bare memory |")
    print("|---|---|---|---|---|")
    for name, row in result["rows"].items():
        print(f"| {name} | " + " | ".join(f"{row[key]:.2f}" for key in row) + " |")
    print("| inference | ms a cloud | times bare time |\n|---|---|---|")
    for name, row in result["inference"].items():
        print(f"| {name} | " + " | ".join(f"{row[key]:.2f}" for key in row) + " |")
    if arguments.output:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
