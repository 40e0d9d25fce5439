"""Count the kernels that a training step of an Any2Point model launches on an accelerator, without one.

    python -m studies.speed.launches --preset minilm --preset clip-scan

On an accelerator a step is bound by launches where its tables are small, and the number of launches needs none to be
counted: on torch's device "meta" models take the branches of an accelerator, nothing is computed, and what would read
a value on the host raises an error. Each operation below autograd counts as the kernels that torch's CUDA code
launches for it: none for a view, one for most others, `KERNELS` for the rest.
"""

from __future__ import annotations

import argparse
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch._inductor.async_compile import AsyncCompile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from hf_any3d.tuners.guided_adapter import GuidedAdapterLayer
from studies.speed.any2point_wrapper import PRESETS, Built, build

FORWARD, BACKWARD = PHASES = ("forward", "backward")
KERNELS = {
    "constant_pad_nd": 2,
    "embedding_dense_backward": 3,
    "index_add": 2,
    "index_put": 7,
    "index_put_": 6,
    "_index_put_impl_": 6,
    "masked_fill": 2,
    "native_batch_norm": 3,
    "native_batch_norm_backward": 2,
    "native_layer_norm_backward": 2,
    "repeat_interleave": 3,
    "scatter": 2,
    "scatter_add": 2,
    "scatter_reduce": 2,
    "select_backward": 2,
    "select_scatter": 2,
    "slice_backward": 2,
    "slice_scatter": 2,
    "sort": 3,
    "std": 1,
}
"""Kernels of an operation, where it is not one: fills, copies and passes of reductions count."""
_NO_KERNEL = {
    "_unsafe_view",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
    "unbind",
}
# Kernels of memory-efficient attention in the backward pass: a product, its sum, and the gradients.
_ATTENTION_BACKWARD = 3
_PLACES = ("modeling/", "hf_any3d/tuners/", "transformers/models/", "transformers/activations")


class Launches(TorchDispatchMode):
    """Count launches by phase and by the file of the model that caused them.

    Operations of the backward pass belong to the line of the forward pass whose node runs, which anomaly mode keeps.
    """

    def __init__(self):
        super().__init__()
        self.phase = FORWARD
        self.counts: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not _is_view(func, name):
            kernels = KERNELS.get(name, 1)
            if name == "native_layer_norm_backward" and not any(args[-1][1:]):
                kernels = 1  # no gradients of frozen gains and shifts
            self.add(kernels)
        return func(*args, **(kwargs or {}))

    def add(self, kernels: int, place: str | None = None) -> None:
        """Count kernels of a place, by default the one that runs."""
        self.counts[self.phase, place or self.place()] += kernels

    def place(self) -> str:
        """Return the file of the model whose code, or whose gradient, runs."""
        files = [frame.filename for frame in traceback.extract_stack()]
        if self.phase == BACKWARD:
            node: Any = torch._C._current_autograd_node()
            if node is None or node.name().endswith("AccumulateGrad"):
                return "sums of gradients"
            files += [line.split('"')[1] for line in node.metadata.get("traceback_", ())]
        for file in reversed(files):
            if (of_model := _file_of_model(file)) is not None:
                return of_model
        return "elsewhere"

    def total(self, phase: str | None = None) -> int:
        """Return the launches of a phase, or of all."""
        return sum(count for (of, _), count in self.counts.items() if phase in (None, of))

    def by_place(self) -> dict[str, list[int]]:
        """Return launches forward and backward of each place, the largest first."""
        places = {place: [self.counts[phase, place] for phase in PHASES] for _, place in self.counts}
        return dict(sorted(places.items(), key=lambda entry: -sum(entry[1])))


def _is_view(func: Any, name: str) -> bool:
    returns = func._schema.returns
    aliases = [value.alias_info for value in returns]
    return name in _NO_KERNEL or (bool(returns) and all(alias is not None and not alias.is_write for alias in aliases))


def _file_of_model(file: str) -> str | None:
    """Return the path of a file from the folder of its models on, None for other files."""
    if "site-packages/torch/" in file:
        return None
    return next((file[file.rindex(place) :] for place in _PLACES if place in file), None)


class _Attention(torch.autograd.Function):
    """Stands for memory-efficient attention, which "meta" would compute as products and a softmax."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, launches: Launches) -> Tensor:
        ctx.launches, ctx.place, ctx.shapes = launches, launches.place(), (query, key, value)
        launches.add(1)
        # As the kernel lays it out: (batch, tokens, heads, width).
        return query.transpose(1, 2).new_empty(*query.transpose(1, 2).shape[:3], value.shape[-1]).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.launches.add(_ATTENTION_BACKWARD, ctx.place)
        laid_out = [part.transpose(1, 2) for part in ctx.shapes]
        return *(part.new_empty(part.shape).transpose(1, 2) for part in laid_out), None


@contextmanager
def _one_kernel_attention(launches: Launches) -> Iterator[None]:
    before = nn.functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _Attention.apply(query, key, value, launches)

    nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = before


def count(loss: Callable[[], Tensor]) -> Launches:
    """Count the launches of a function that returns a loss, and of its backward pass."""
    launches = Launches()
    with warnings.catch_warnings(), _one_kernel_attention(launches):
        warnings.simplefilter("ignore")  # anomaly mode warns that it is slow
        with torch.autograd.set_detect_anomaly(True, check_nan=False), launches:
            value = loss()
            launches.phase = BACKWARD
            value.backward()
    return launches


def count_preset(preset: str, batch: int = 32) -> tuple[Launches, Launches]:
    """Count the launches of a training step with points indexed before, and of the bare layers."""
    return count_built(build(preset, batch))


def count_built(built: Built) -> tuple[Launches, Launches]:
    """Count the launches of a model and of its bare layers. The weights of the model are dropped."""
    model, layers = built.model.to("meta"), [layer.to("meta") for layer in built.layers]
    inputs = {"points": built.clouds, "labels": built.labels, "point_index": built.point_index}
    inputs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs)
    sequence = built.sequence.detach().to("meta").requires_grad_()

    def bare() -> Tensor:
        hidden_states = sequence
        for layer in layers:
            hidden_states = layer(hidden_states, attention_mask=None, is_causal=False)
        return hidden_states.sum()

    return count(lambda: model(**inputs).loss), count(bare)


class _Skipped(torch.autograd.Function):
    """Stands for a compiled layer: launches nothing, and passes gradients to all that the layer reads."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, *others: Tensor) -> Tensor:
        ctx.shapes = hidden_states, *others
        return torch.empty_like(hidden_states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.shapes)


def count_outside(preset: str, batch: int = 2) -> Launches:
    """Count the launches of a step outside of its layers, whose passes are left out."""

    def skipped(layer: GuidedAdapterLayer, hidden_states: Tensor, geometry: Any, tables: Any, *args: Any) -> Any:
        folded = [part for table in tables.values() for part in (*table.folded, table.attention.out_bias)]
        views = hidden_states.new_empty(layer.views + 1, layer.hidden_size)
        return _Skipped.apply(hidden_states, *folded), dict.fromkeys(tables, (views, views))

    with patch.object(GuidedAdapterLayer, "_pass", skipped):
        return count_preset(preset, batch)[0]


def count_region(preset: str) -> Counter[str]:
    """Count the kernels of a layer that inductor makes for a CPU, forward and backward, without running them.

    Each loop nest, product and operator of torch counts as one, memory-efficient attention as in `Launches`.
    """
    counts: Counter[str] = Counter()
    phases = iter(PHASES)

    def count_nodes(nodes: list[Any]) -> list[Any]:
        phase = next(phases)
        for node in nodes:
            name = getattr(node.node, "python_kernel_name", None) or ""
            is_attention = "_backward" in name and "attention" in name
            # Results of an operator with several, and what is never computed, are nodes, too.
            if type(node.node).__name__ != "MultiOutput" and "Nop" not in type(node).__name__:
                counts[phase] += _ATTENTION_BACKWARD if is_attention else 1
        return nodes

    built = build(preset, 3)
    layers = [module for module in built.model.modules() if isinstance(module, GuidedAdapterLayer)]
    for layer in layers:
        layer.compile()
    settings = {"_post_fusion_custom_pass": count_nodes, "force_disable_caches": True}
    nothing = patch.object(AsyncCompile, "cpp_pybinding", lambda *args, **kwargs: lambda *args: None)
    with inductor_config.patch(settings), nothing:
        built.model(points=built.clouds, labels=built.labels, point_index=built.point_index).loss.backward()
    return counts


def main() -> None:
    """Print the launches of presets."""
    parser = argparse.ArgumentParser(description="Count the launches of a training step.")
    parser.add_argument("--preset", action="append", choices=PRESETS, help="may be given several times")
    parser.add_argument("--batch", type=int, default=32, help="clouds of a step")
    parser.add_argument("--compiled", action="store_true", help="also count with compiled layers, in a minute")
    options = parser.parse_args()
    for preset in options.preset or ["minilm", "clip-scan"]:
        step, bare = count_preset(preset, options.batch)
        print(f"{preset}: {step.total()} launches a step, {bare.total()} of its bare layers")
        for place, (forward, backward) in step.by_place().items():
            print(f"  {place:<64}{forward:>6}{backward:>6}")
        if options.compiled:
            outside, region = count_outside(preset), count_region(preset)
            layers = PRESETS[preset][0]["num_hidden_layers"]
            whole = [outside.total(phase) + layers * region[phase] for phase in PHASES]
            print(f"  with {layers} compiled layers of {[region[phase] for phase in PHASES]} kernels: {whole}")


if __name__ == "__main__":
    main()
