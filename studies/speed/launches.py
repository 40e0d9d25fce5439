"""Count the kernels that a training step of an Any2Point model launches on an accelerator, without one.

    python -m studies.speed.launches --preset minilm --preset clip-scan

On an accelerator a step is bound by launches where its tables are small, and the number of launches needs none to be
counted: on torch's device "meta" models take the branches of an accelerator, nothing is computed, and what would read
a value on the host raises an error. Each operation below autograd counts as the kernels that torch's CUDA code
launches for it: none for a view, one for most others, `KERNELS` for the rest.
"""

from __future__ import annotations

import argparse
import copy
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor import config as inductor_config, utils as inductor_utils
from torch._inductor.codegen.triton import TritonScheduling
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.scheduler import Scheduler
from torch._inductor.virtualized import V
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from hf_any3d.modeling.kernels import set_kernels
from hf_any3d.training.faster_steps import compile_layers
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
# The function whose operations a compiler takes, and the place of their launches.
_COMPILED = "_compiled"
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
        """Count kernels of a place, by default the one that runs, unless it is part of a compiled region."""
        place = place or self.place()
        if place != _COMPILED:
            self.counts[self.phase, place] += kernels

    def place(self) -> str:
        """Return the file of the model whose code, or whose gradient, runs."""
        frames = [(frame.filename, frame.name) for frame in traceback.extract_stack()]
        if self.phase == BACKWARD:
            node: Any = torch._C._current_autograd_node()
            if node is None or node.name().endswith("AccumulateGrad"):
                return "sums of gradients"
            for line in node.metadata.get("traceback_", ()):
                _, file, after = line.split('"', 2)
                frames.append((file, after.split(" in ", 1)[1].split("\n", 1)[0]))
        if any(name == _COMPILED for _, name in frames):
            return _COMPILED
        for file, _ in reversed(frames):
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


@dataclass
class Region:
    """Function that a step runs compiled as one, how often it calls it, and the kernels and products by phase."""

    name: str
    calls: int = 0
    kernels: Counter[str] = field(default_factory=Counter)
    products: Counter[str] = field(default_factory=Counter)
    backend: Callable[..., Any] | None = None  # one for all calls, or each would be compiled again


class _Boundary(torch.autograd.Function):
    """The edge of a compiled region: its backward pass hands out one gradient for each input."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def count_compiled(preset: str, batch: int = 2) -> tuple[Launches, list[Region]]:
    """Count the launches of a step outside of its compiled regions, and the kernels of each region.

    Outside, a step launches what it launches without compilation. Inside, inductor orders and merges the operations
    of a graph as it does for a GPU, and is stopped before it writes the kernels, for which it would need one. Each
    merged loop nest, product and operator of torch counts as one, memory-efficient attention as in `Launches`.
    """
    torch.compiler.reset()  # sizes of earlier models would be taken for such that change
    regions: dict[str, Region] = {}
    with patch.object(torch, "compile", partial(_counted_region, regions)):
        built = build(preset, batch)
        compile_layers(built.model.get_base_model())
        outside, _ = count_built(built)
    with patch.object(torch, "compile", partial(_scheduled_region, regions, torch.compile)):
        built = build(preset, batch)
        compile_layers(built.model.get_base_model())
        built.model(points=built.clouds, labels=built.labels, point_index=built.point_index).loss.backward()
    return outside, list(regions.values())


def _counted_region(regions: dict[str, Region], function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Stand for `torch.compile` on "meta": what runs inside of the function is not counted, but its calls are."""
    region = regions.setdefault(function.__qualname__, Region(function.__qualname__))

    def _compiled(*args: Any, **kwargs: Any) -> Any:
        before = set_kernels("torch")  # the backward passes of others have no line of the model
        try:
            return function(*args, **kwargs)
        finally:
            set_kernels(before)

    def call(*args: Any, **kwargs: Any) -> Any:
        region.calls += 1
        leaves, structure = tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if places:
            for place, tensor in zip(places, _Boundary.apply(*[leaves[place] for place in places]), strict=True):
                leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, structure)
        return _compiled(*args, **kwargs)

    return call


def _scheduled_region(
    regions: dict[str, Region], compiler: Callable[..., Any], function: Callable[..., Any], **options: Any
) -> Callable[..., Any]:
    """Stand for `torch.compile`: count the kernels that inductor would make of a function for a GPU."""
    region = regions.setdefault(function.__qualname__, Region(function.__qualname__))
    settings = options.pop("options", {})

    def scheduled(graph: Any, inputs: Any, **kwargs: Any) -> Any:
        # Passes over the graph change it in place.
        kept = GraphModule(graph, copy.deepcopy(graph.graph))
        phase = BACKWARD if kwargs.get("is_backward") else FORWARD
        try:
            with _scheduling_for_a_gpu(settings):
                compile_fx_inner(graph, inputs, **kwargs)
        except Exception as error:
            nodes = _scheduled_nodes(error)
        for node in nodes:
            kernels, is_product = _kernels_of(node)
            region.kernels[phase] += kernels
            region.products[phase] += is_product
        return make_boxed_func(kept.forward)

    region.backend = region.backend or partial(compile_fx, inner_compile=scheduled)
    return compiler(function, backend=region.backend, **options)


class _Scheduled(Exception):
    """Stops inductor when its kernels are decided on."""

    def __init__(self, nodes: list[Any]):
        super().__init__("all kernels are counted")
        self.nodes = nodes


def _scheduled_nodes(error: BaseException) -> list[Any]:
    """Return the kernels with which inductor was stopped."""
    found: Any = error
    while found is not None and not isinstance(found, _Scheduled):
        found = found.__cause__ or found.__context__
    if found is None:
        raise error
    return found.nodes


@contextmanager
def _scheduling_for_a_gpu(settings: dict[str, Any]) -> Iterator[None]:
    """Let inductor schedule graphs of a CPU as for an H100, and stop before it writes kernels."""

    def backend(scheduler: Scheduler, device: torch.device) -> TritonScheduling:
        V.graph.add_device_info(device)
        return TritonScheduling(scheduler)

    def stop(scheduler: Scheduler) -> None:
        raise _Scheduled(scheduler.nodes)

    with ExitStack() as stack:
        for owner, name, value in (
            (Scheduler, "create_backend", backend),
            (Scheduler, "codegen", stop),
            (DeviceProperties, "create", staticmethod(lambda device: _H100)),
            (inductor_utils, "GPU_TYPES", [*inductor_utils.GPU_TYPES, "cpu"]),
        ):
            stack.enter_context(patch.object(owner, name, value))
        always = {"cpu_backend": "triton", "fx_graph_cache": False}
        stack.enter_context(inductor_config.patch(always | settings))
        yield


_H100 = DeviceProperties(
    type="cuda",
    index=0,
    multi_processor_count=132,
    cc=90,
    major=9,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
)


def _kernels_of(node: Any) -> tuple[int, bool]:
    """Return the launches of a node of inductor's schedule, and whether it is a matrix product."""
    # Results of an operator with several, and what is never computed, are nodes, too.
    if type(node.node).__name__ == "MultiOutput" or "Nop" in type(node).__name__:
        return 0, False
    # Such as "torch.ops.aten.sort.stable", "aten.scatter_reduce_.two", "extern_kernels.mm".
    operator = getattr(node.node, "python_kernel_name", None) or ""
    names = [name.rstrip("_") for name in operator.split(".")]
    if any("attention" in name and name.endswith("_backward") for name in names):
        return _ATTENTION_BACKWARD, False
    kernels = next((KERNELS[name] for name in names if name in KERNELS), 1)
    return kernels, names[-1].endswith("mm")


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
            _print_compiled(*count_compiled(preset))


def _print_compiled(outside: Launches, regions: list[Region]) -> None:
    """Print the launches of a step with compiled layers."""
    whole = {phase: outside.total(phase) + sum(of.calls * of.kernels[phase] for of in regions) for phase in PHASES}
    products = sum(of.calls * of.products.total() for of in regions)
    print(f"  compiled: {sum(whole.values())} launches a step, {list(whole.values())}, of which {products} products")
    for of in regions:
        print(f"  {of.calls:>4} x {of.name:<58}{of.kernels[FORWARD]:>6}{of.kernels[BACKWARD]:>6}")
    print("  outside:")
    for place, (forward, backward) in outside.by_place().items():
        print(f"    {place:<62}{forward:>6}{backward:>6}")


if __name__ == "__main__":
    main()
