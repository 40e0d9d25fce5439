"""Compare the fused implementation of every operation with its plain one, at the sizes of released configurations.

    python -m studies.speed.kernels --output kernels.json

The calls of a training step are recorded and repeated with both implementations, in turns, forward and backward: of
the paper's Any2Point (CLIP, ScanObjectNN), also with norms that are not fused, as with statistics of several
processes, of the default one that `from_encoder_pretrained` builds around MiniLM, of ACT's autoencoder and student, of
Uni3D, and of Point Transformer V3, also with a guided adapter. Times are processor times of this process. Saved bytes
are what autograd saves for the backward pass, without parameters and inputs. Shares are what the fused implementation
saves of the processor time and the saved bytes of a step that is plain in this operation alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel

from hf_any3d import (
    ActAutoencoder,
    ActAutoencoderConfig,
    ActConfig,
    ActForPointCloudClassification,
    Any2PointConfig,
    Any2PointForPointCloudClassification,
    GuidedAdapterConfig,
    PointTransformerV3Config,
    PointTransformerV3ForPointCloudClassification,
    Uni3DConfig,
    Uni3DForPointCloudClassification,
)
from hf_any3d.conversions.any2point import VARIANTS
from hf_any3d.modeling.any2point.small_data_defaults import LIGHT, LIGHT_ADAPTER
from hf_any3d.modeling.encoders import freeze
from hf_any3d.modeling.kernels import TABLE, Kernel
from hf_any3d.modeling.kernels.guided_aggregation.ensemble import BatchNorm
from hf_any3d.tuners.guided_adapter.method import CellNorm
from hf_any3d.utils.atomic_files import write_json
from studies.speed._measure import saved_bytes, storages

_UNREAD = {"vocab_size": 8, "image_size": 32, "eos_token_id": 2}
_MINILM = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
_TINY = dict(num_hidden_layers=2, num_attention_heads=2, hidden_size=48, intermediate_size=64)
_VIT_BASE = dict(num_hidden_layers=12, num_attention_heads=12, hidden_size=768, intermediate_size=3072)


def any2point(tiny: bool) -> tuple[nn.Module, dict[str, Any], int]:
    """Build the released CLIP model with random weights, and its inputs besides points; returns a cloud's points."""
    variant = VARIANTS["clip-scan"]
    settings = _UNREAD | variant.encoder | (_TINY if tiny else {})
    encoder = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    sizes = {"num_tokens": 16, "tokenizer_neighbors": 8, "tokenizer_width": 48} if tiny else {}
    model = Any2PointForPointCloudClassification(
        Any2PointConfig(encoder_config=encoder.config, **(variant.model | sizes)), freeze(encoder)
    )
    return get_peft_model(model, GuidedAdapterConfig(**variant.adapter)).train(), {"labels": None}, 1024


def any2point_norms_apart(tiny: bool) -> tuple[nn.Module, dict[str, Any], int]:
    """Build the same model with hooks on the adapter's norms, which keep them apart."""
    model, inputs, points = any2point(tiny)
    for module in model.modules():
        if isinstance(module, CellNorm):
            module.register_forward_hook(lambda *_: None)
    return model, inputs, points


def default_model(tiny: bool) -> tuple[nn.Module, dict[str, Any], int]:
    """Build the model that a new user gets, with random weights; returns a cloud's points."""
    encoder = AutoModel.from_config(AutoConfig.for_model("bert", **(_UNREAD | (_TINY if tiny else _MINILM))))
    sizes = {"num_tokens": 16, "tokenizer_neighbors": 8, "tokenizer_width": 48} if tiny else {}
    settings = LIGHT | {"tokenizer_weights": "random", "num_labels": 18} | sizes
    model = Any2PointForPointCloudClassification(
        Any2PointConfig(encoder_config=encoder.config, **settings), freeze(encoder)
    )
    return get_peft_model(model, GuidedAdapterConfig(**LIGHT_ADAPTER)).train(), {"labels": None}, 1024


def act_student(tiny: bool) -> tuple[nn.Module, dict[str, Any], int]:
    """Build the released student as a classifier, with random weights; returns a cloud's points."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_groups": 8} if tiny else {}
    return ActForPointCloudClassification(ActConfig(num_labels=15, **sizes)).train(), {"labels": None}, 1024


def uni3d(tiny: bool) -> tuple[nn.Module, dict[str, Any], int]:
    """Build Uni3D's small size as a classifier, with random weights; returns a cloud's points."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_groups": 8} if tiny else {}
    sizes = sizes or {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "num_groups": 128}
    return Uni3DForPointCloudClassification(Uni3DConfig(num_labels=15, **sizes)).train(), {"labels": None}, 1024


def point_transformer_v3(tiny: bool) -> tuple[nn.Module, dict[str, Any], int]:
    """Build Concerto's small size as a classifier, with random weights; returns a cloud's points."""
    settings = {"num_labels": 15, "grid_size": 0.1 if tiny else 0.05, "in_channels": 9}
    model = PointTransformerV3ForPointCloudClassification(PointTransformerV3Config(**settings))
    return model.train(), {"labels": None}, 200 if tiny else 4096


def adapted_point_transformer_v3(tiny: bool) -> tuple[nn.Module, dict[str, Any], int]:
    """Build the same model with a guided adapter, whose cells are lists of the voxels of all clouds."""
    model, inputs, points = point_transformer_v3(tiny)
    return get_peft_model(model, GuidedAdapterConfig()).train(), inputs, points


def act_autoencoder(tiny: bool) -> tuple[nn.Module, dict[str, Any], int]:
    """Build the released autoencoder with random weights; returns a cloud's points."""
    encoder = AutoConfig.for_model("vit", **(_UNREAD | (_TINY if tiny else _VIT_BASE)))
    sizes = {"num_groups": 8, "num_codes": 16, "hidden_size": 16, "graph_widths": (8, 8, 8, 8)} if tiny else {}
    return ActAutoencoder(ActAutoencoderConfig(encoder_config=encoder, **sizes)).train(), {"kl_weight": 0.1}, 1024


LARGEST_DIFFERENCE = 1e-3
"""Allowed between fused and plain results, relative to the largest number."""

STEPS: dict[str, Callable[[bool], tuple[nn.Module, dict[str, Any], int]]] = {
    "any2point": any2point,
    "any2point, norms apart": any2point_norms_apart,
    "default model": default_model,
    "act autoencoder": act_autoencoder,
    "act student": act_student,
    "uni3d": uni3d,
    "point transformer v3": point_transformer_v3,
    "point transformer v3, adapted": adapted_point_transformer_v3,
}


@contextmanager
def recorded_calls() -> Iterator[list[tuple[Kernel, tuple]]]:
    """Record all calls of operations, with detached arguments."""
    calls: list[tuple[Kernel, tuple]] = []
    call = Kernel.__call__

    def record(kernel: Kernel, *args: Any) -> Any:
        calls.append((kernel, tuple(map(_detached, args))))
        return call(kernel, *args)

    Kernel.__call__ = record
    try:
        yield calls
    finally:
        Kernel.__call__ = call


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if hasattr(value, "features"):  # neighborhoods
        return dataclasses.replace(value, features=_detached(value.features))
    if isinstance(value, BatchNorm):
        return BatchNorm(*map(_detached, value))
    return value


def _results(implementation: Callable, args: tuple) -> tuple[torch.Tensor, ...]:
    results = implementation(*args)
    return results if isinstance(results, tuple) else (results,)


def _run(implementation: Callable, args: tuple) -> torch.Tensor:
    """Return a scalar that depends on all results; zero without a gradient if they have none."""
    sums = [result.sum() for result in _results(implementation, args) if result.requires_grad]
    return sum(sums) if sums else torch.zeros((), requires_grad=True)


@torch.no_grad()
def _difference(kernel: Kernel, args: tuple) -> float:
    """Return the largest difference of fused and plain results, relative to the largest number of each tensor."""
    pairs = zip(_results(kernel.fused, args), _results(kernel.plain, args), strict=True)
    return max(float((fused - plain).abs().max() / plain.abs().max().clamp(min=1e-6)) for fused, plain in pairs)


def measure_call(kernel: Kernel, args: tuple, repeats: int) -> dict[str, float]:
    """Measure both implementations of one call."""
    if (difference := _difference(kernel, args)) > LARGEST_DIFFERENCE:
        raise SystemExit(f"{kernel.fused.__name__}: fused and plain results differ by {difference:.1e}")
    modules = [arg for arg in args if isinstance(arg, nn.Module)]
    tensors = [getattr(arg, "features", arg) for arg in args]
    known = storages(*modules) | {t.untyped_storage().data_ptr() for t in tensors if isinstance(t, torch.Tensor)}
    implementations = {"fused": kernel.fused, "plain": kernel.plain}
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for _ in range(repeats + 1):
        for name, implementation in implementations.items():
            start = time.process_time()
            _run(implementation, args).backward()
            seconds[name].append(time.process_time() - start)
    found = {f"{name}_seconds": statistics.median(values[1:]) for name, values in seconds.items()}
    for name, implementation in implementations.items():
        found[f"{name}_bytes"] = saved_bytes(lambda own=implementation: _run(own, args), known)
    return found


def measure(step_name: str, batch: int, repeats: int, tiny: bool) -> list[dict[str, Any]]:
    """Measure the operations of a training step."""
    torch.manual_seed(0)
    model, inputs, points = STEPS[step_name](tiny)
    channels = getattr(model.config, "in_channels", 3)
    inputs["points"] = torch.rand(batch, points, channels) - 0.5  # (batch, points, channels)
    if "labels" in inputs:
        inputs["labels"] = torch.arange(batch) % model.config.num_labels

    def step() -> torch.Tensor:
        return model(**inputs).loss

    step_bytes = saved_bytes(step, storages(model))
    with recorded_calls() as calls:
        step().backward()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        step().backward()
        seconds.append(time.process_time() - start)
    step_seconds = statistics.median(seconds)
    rows = []
    for name, kernel in TABLE.items():
        own = [args for called, args in calls if called is kernel and kernel.uses_fused(*args)]
        if not own:
            continue
        # Calls of a step have different sizes; of many, an even selection is measured.
        chosen = own[:: max(1, len(own) // 4)]
        measured = [measure_call(kernel, args, repeats) for args in chosen]
        sums = {key: sum(call[key] for call in measured) * len(own) / len(chosen) for key in measured[0]}
        saved = sums["plain_seconds"] - sums["fused_seconds"]
        saved_memory = sums["plain_bytes"] - sums["fused_bytes"]
        rows.append(
            {"step": step_name, "operation": name, "calls": len(own)}
            | sums
            | {"time_share": saved / (step_seconds + saved), "bytes_share": saved_memory / (step_bytes + saved_memory)}
        )
    return rows


def main() -> None:
    """Time fused and plain operations and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the program")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    print("| step | operation | calls | ms fused | ms plain | MB fused | MB plain | saves of time | of bytes |")
    print("|---|---|---|---|---|---|---|---|---|")
    for step in arguments.steps:
        for row in measure(step, arguments.batch, arguments.repeats, arguments.tiny):
            times = [f"{1000 * row[f'{name}_seconds']:.1f}" for name in ("fused", "plain")]
            sizes = [f"{row[f'{name}_bytes'] / 1e6:.1f}" for name in ("fused", "plain")]
            shares = [f"{100 * row[f'{name}_share']:.1f} %" for name in ("time", "bytes")]
            print("| " + " | ".join([step, row["operation"], str(row["calls"]), *times, *sizes, *shares]) + " |")
            rows.append(row)
    if arguments.output:
        write_json(
            arguments.output,
            {"batch": arguments.batch, "threads": arguments.threads, "torch": torch.__version__, "rows": rows},
        )


if __name__ == "__main__":
    main()
