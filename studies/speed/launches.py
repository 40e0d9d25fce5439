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

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from studies.speed.any2point_wrapper import PRESETS, build

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
    built = build(preset, batch)
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


def main() -> None:
    """Print the launches of presets."""
    parser = argparse.ArgumentParser(description="Count the launches of a training step.")
    parser.add_argument("--preset", action="append", choices=PRESETS, help="may be given several times")
    parser.add_argument("--batch", type=int, default=32, help="clouds of a step")
    options = parser.parse_args()
    for preset in options.preset or ["minilm", "clip-scan"]:
        step, bare = count_preset(preset, options.batch)
        print(f"{preset}: {step.total()} launches a step, {bare.total()} of its bare layers")
        for place, (forward, backward) in step.by_place().items():
            print(f"  {place:<64}{forward:>6}{backward:>6}")


if __name__ == "__main__":
    main()
