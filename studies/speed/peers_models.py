"""Compare classifiers with torch-pointcloud's, with the same weights and clouds: processor time, memory, outputs.

    pip install --no-deps --target DIR torch-pointcloud==0.0.18 torch-geometric
    pip install --no-deps --no-build-isolation --target DIR torch-cluster==1.6.3     # compiled: half an hour
    PYTHONPATH=DIR python -m studies.speed.peers_models --output studies/speed/results/peers_models.md

Nothing is fetched: weights are random numbers that torch-pointcloud's class is given, and ours are converted from its
file. Dropout and stochastic depth are off, as their draws differ; losses and gradients are then compared, too. Both
sides take turns on one thread in float32. Of each pair the ratio is taken; the table has its median and range.

torch-pointcloud samples points and looks for neighbors with pyg-lib, which the package index lacks. Functions of the
same kind in torch-cluster take their place. Without it, both sides use ours, and neighbors are not compared.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points, knn
from hf_any3d.utils.atomic_files import write_text
from studies.speed.peers import held_megabytes, memory_of
from studies.torch_pointcloud import built, converted, registered, versions_of

MODELS = {
    "Point-MAE": "point-mae-base.modelnet40.yatian-pang",
    "Point-BERT": "point-bert-base.modelnet40.xumin-yu",
    "PointGPT-S": "pointgpt-s.modelnet40.guangyan-chen",
}
SHAPES = ((8, 1024), (32, 2048))
CENTERS = (64, 512)
LARGEST_DIFFERENCE = 1e-5
"""Allowed of outputs, relative to the largest."""
_PACKAGES = ("torch-pointcloud", "torch-geometric", "torch-cluster", "torch", "numpy", "hf-any3d")
# Where the time goes, by the names of torch's operations.
_PARTS = {
    "products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::addmv_", "aten::baddbmm"),
    "attention": ("attention", "softmax"),
    "activations": ("gelu", "relu", "threshold", "clamp_min"),
    "norms": ("norm",),
    "maxima": ("max", "embedding_bag", "sort", "scatter", "eq"),
}


class Pair(NamedTuple):
    """Processor seconds of both sides in turns, their megabytes, and the difference of their outputs."""

    what: str
    theirs: list[float]
    ours: list[float]
    megabytes: tuple[float, float] | None
    difference: float

    def cells(self) -> list[str]:
        """Return the cells of a row of the table."""
        ratios = [own / other for own, other in zip(self.ours, self.theirs, strict=True)]
        seconds = [f"{1000 * statistics.median(values):,.4g}" for values in (self.theirs, self.ours)]
        ratio = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        memory = ["", ""]
        if self.megabytes is not None:
            theirs, ours = self.megabytes
            memory = [f"{theirs:,.0f} / {ours:,.0f}", f"{ours / theirs:.2f}"]
        return [self.what, *seconds, ratio, *memory, f"{self.difference:.1e}"]


def stand_in(pool: Any, cluster: Any | None) -> None:
    """Set functions of torch-geometric's `pool` to those of torch-cluster, or to ours if that is None."""
    if cluster is not None:
        # From the first point of each cloud, as ours.
        pool.fps = lambda x, batch, ratio, **_: cluster.fps(x, batch, ratio, random_start=False)
        pool.knn = lambda x, y, k, batch_x, batch_y, **_: cluster.knn(x, y, k, batch_x, batch_y)
        return

    def sample(x: Tensor, batch: Tensor, ratio: float, **_: Any) -> Tensor:
        clouds = x.view(int(batch[-1]) + 1, -1, x.shape[1])
        index = farthest_point_sample(clouds, round(ratio * clouds.shape[1]))
        return (index + torch.arange(len(clouds)).unsqueeze(1) * clouds.shape[1]).flatten()

    def search(x: Tensor, y: Tensor, k: int, batch_x: Tensor, batch_y: Tensor, **_: Any) -> Tensor:
        clouds = x.view(int(batch_x[-1]) + 1, -1, x.shape[1])
        index = knn(y.view(len(clouds), -1, x.shape[1]), clouds, k)
        index = index + torch.arange(len(clouds)).view(-1, 1, 1) * clouds.shape[1]
        return torch.stack([torch.arange(len(y)).repeat_interleave(k), index.flatten()])

    pool.fps, pool.knn = sample, search


def without_draws(model: nn.Module) -> nn.Module:
    """Turn off dropout and stochastic depth, whose draws would differ."""
    module: Any
    for module in model.modules():
        for name in ("p", "rate", "drop_prob"):
            if type(module).__name__ in ("Dropout", "DropPath") and hasattr(module, name):
                setattr(module, name, 0.0)
        if isinstance(getattr(module, "dropout", None), list):  # of torch-geometric's MLP
            module.dropout = [0.0] * len(module.dropout)
    return model


def megabytes(step: Callable[[], Any]) -> float:
    """Return the most that the process holds during a step, beyond what it held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = held_megabytes()
    step()
    return memory_of("VmHWM") - before


def in_turns(theirs: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """Return processor seconds of both, pair by pair; a first pair is not counted."""
    spent: tuple[list[float], list[float]] = [], []
    for _ in range(rounds + 1):
        for values, step in zip(spent, (theirs, ours), strict=True):
            start = time.process_time()
            step()
            values.append(time.process_time() - start)
    return spent[0][1:], spent[1][1:]


class Sides(NamedTuple):
    """A forward pass and a training step of both models on the same clouds."""

    forward: tuple[Callable[[], Tensor], Callable[[], Tensor]]
    step: tuple[Callable[[], Tensor], Callable[[], Tensor]]


def sides(theirs: nn.Module, ours: nn.Module, shape: tuple[int, int]) -> Sides:
    """Return what is measured of both models, on so many clouds of so many points."""
    clouds, points = shape
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(clouds, points, 3, generator=generator) * 2 - 1
    batch = torch.arange(clouds).repeat_interleave(points)
    flat = inputs.flatten(0, 1)
    labels = torch.arange(clouds) % 10

    def their_logits() -> Tensor:
        answer = theirs(None, flat, batch)
        return answer[0] if isinstance(answer, tuple) else answer

    def our_logits() -> Tensor:
        return ours(points=inputs).logits

    def forward(model: nn.Module, logits: Callable[[], Tensor]) -> Tensor:
        model.eval()
        with torch.no_grad():
            return logits()

    def step(model: nn.Module, logits: Callable[[], Tensor]) -> Tensor:
        model.train()
        model.zero_grad()
        loss = nn.functional.cross_entropy(logits(), labels)
        loss.backward()
        return loss.detach()

    pairs = ((theirs, their_logits), (ours, our_logits))
    forwards = [lambda own=own: forward(*own) for own in pairs]
    steps = [lambda own=own: step(*own) for own in pairs]
    return Sides((forwards[0], forwards[1]), (steps[0], steps[1]))


def compare(name: str, both: Sides, shape: tuple[int, int], rounds: int) -> list[Pair]:
    """Measure a model's forward pass and training step.

    Raises:
        SystemExit: Outputs differ.
    """
    rows = []
    about = f"{shape[0]} × {shape[1]:,}"
    # Forward first: steps change running statistics, each side its own.
    for what, pair in (("forward", both.forward), ("step", both.step)):
        theirs, ours = (run() for run in pair)
        width = min(theirs.shape[-1], ours.shape[-1]) if theirs.ndim else None
        theirs, ours = (values if width is None else values[..., :width] for values in (theirs, ours))
        difference = float((theirs - ours).abs().max() / theirs.abs().max())
        if difference > LARGEST_DIFFERENCE:
            raise SystemExit(f"{name}, {about}, {what}: outputs differ by {difference:.1e}")
        memory = megabytes(pair[0]), megabytes(pair[1])
        rows.append(Pair(f"{name}, {about}, {what}", *in_turns(*pair, rounds), memory, difference))
        print("| " + " | ".join(rows[-1].cells()) + " |", flush=True)
    return rows


def neighbors(cluster: Any, rounds: int) -> list[Pair]:
    """Measure the search for 32 neighbors of centers in eight clouds beside torch-cluster's compiled search."""
    points = torch.rand(8, 1024, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    flat = points.flatten(0, 1)
    batch = torch.arange(8).repeat_interleave(1024)
    rows = []
    for count in CENTERS:
        centers = gather_points(points, farthest_point_sample(points, count))
        queries = centers.flatten(0, 1)
        of_queries = torch.arange(8).repeat_interleave(count)
        theirs = lambda queries=queries, own=of_queries: cluster.knn(flat, queries, 32, batch, own)  # noqa: E731
        ours = lambda centers=centers: knn(centers, points, 32)  # noqa: E731
        found = theirs()[1].view(8, count, 32) % 1024
        differing = float((found.sort(-1).values != ours().sort(-1).values).any(-1).double().mean())
        rows.append(
            Pair(f"32 nearest of {count} centers, 8 × 1,024", *in_turns(theirs, ours, 5 * rounds), None, differing)
        )
        print("| " + " | ".join(rows[-1].cells()) + " |", flush=True)
    return rows


def floor(step: Callable[[], Any]) -> float:
    """Return the operations of a step's matrix products, in 10^9; a multiplication and an addition are two."""

    def added(_: Sequence[int], first: Sequence[int], second: Sequence[int], *_args: Any, **_named: Any) -> int:
        return 2 * first[0] * first[1] * second[1]  # torch counts no product that is added in place

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
        step()
    return counter.get_total_flops() / 1e9


def speed() -> float:
    """Return 10^9 operations a second of the product that a block of these models has most of."""
    rows, weight = torch.rand(520, 384), torch.rand(1536, 384)
    spent = []
    for _ in range(20):
        start = time.process_time()
        nn.functional.linear(rows, weight)
        spent.append(time.process_time() - start)
    return 2 * rows.shape[0] * weight.numel() / statistics.median(spent) / 1e9


def allowed(pair: Pair, runs: tuple[Callable[[], Any], Callable[[], Any]]) -> list[str]:
    """Return the cells of a row that says what the matrix products allow."""
    theirs, ours = (floor(run) for run in runs)
    least = ours / speed()
    their_seconds, our_seconds = (statistics.median(values) for values in (pair.theirs, pair.ours))
    cells = [
        f"{theirs:.1f} / {ours:.1f}",
        f"{ours / theirs:.2f}",
        f"{1000 * least:,.4g}",
        f"{1000 * our_seconds:,.4g}",
    ]
    return [pair.what, *cells, f"{least / their_seconds:.2f}", f"{our_seconds / their_seconds:.2f}"]


def shares(step: Callable[[], Any]) -> dict[str, float]:
    """Return the share of each part in the time of a step."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    found = dict.fromkeys([*_PARTS, "the rest"], 0.0)
    for event in profiler.key_averages():
        names = (part for part, words in _PARTS.items() if _is_of(event.key, words))
        found[next(names, "the rest")] += event.self_cpu_time_total
    total = sum(found.values())
    return {part: spent / total for part, spent in found.items()}


def _is_of(key: str, words: Sequence[str]) -> bool:
    # Whole names of operations, or words in any.
    return any(key == word if word.startswith("aten::") else word in key.lower() for word in words)


def page(rows: Sequence[Pair], floors: Sequence[Sequence[str]], parts: Sequence[Sequence[str]], compiled: bool) -> str:
    """Return the page of the study."""
    head = ["", "theirs, ms", "ours, ms", "ratio", "MB, theirs / ours", "ratio", "difference"]
    lines = ["# Classifiers beside torch-pointcloud's", "", *_table(head, [row.cells() for row in rows])]
    head = ["", "10⁹ operations, theirs / ours", "ratio", "ours at least, ms", "ours, ms", "ratio at least", "ratio"]
    lines += ["", "## What the matrix products allow", "", *_table(head, floors)]
    head = ["step, % of the time", *_PARTS, "the rest"]
    lines += ["", "## Where the time of a step goes", "", *_table(head, parts)]
    about = ", ".join(f"{name} {number}" for name, number in versions_of(_PACKAGES).items())
    sampled = "here they are torch-cluster's" if compiled else "here both sides use ours, so that networks compare"
    lines += ["", _ABOUT.strip().format(sampled=sampled), "", f"Versions: {about}.", ""]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


_ABOUT = """
Weights are random and the same, clouds are the same, one thread, float32, dropout and stochastic depth off. A step is
a forward pass in training mode, the loss and the backward pass, without an optimizer. Times are medians of processor
milliseconds; the two sides take turns, and ratios are medians of pairs, with their range. Memory is the most that a
pass holds beyond what the process held before it. Differences are relative to the largest output; of a step they are
those of the loss, of neighbors the share of centers whose neighbors differ. Sampling and neighbors of torch-pointcloud
need pyg-lib, which the package index lacks: {sampled}.

"At least" is the time of our matrix products alone, at the speed of a layer of 384 by 1,536 on 520 tokens. Its ratio
is that to all of torch-pointcloud's time.
"""


def main() -> None:
    """Measure all rows and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5, help="pairs that count")
    parser.add_argument("--small", action="store_true", help="leave out the larger batch")
    parser.add_argument("--output", type=Path, help="file of the page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    entries = dict(registered(("classification",)))
    compiled = find_spec("torch_cluster") is not None
    cluster: Any = importlib.import_module("torch_cluster") if compiled else None
    stand_in(importlib.import_module("torch_geometric.nn.pool"), cluster)
    rows = neighbors(cluster, arguments.rounds) if compiled else []
    floors: list[list[str]] = []
    parts: list[list[str]] = []
    models: dict[str, tuple[nn.Module, nn.Module]] = {}
    for name in arguments.models:
        with torch.no_grad():
            theirs = built(MODELS[name], entries[MODELS[name]])
        ours = without_draws(converted(MODELS[name], theirs))
        models[name] = without_draws(theirs), ours
    states = {name: [copy.deepcopy(model.state_dict()) for model in pair] for name, pair in models.items()}
    for shape in SHAPES[:1] if arguments.small else SHAPES:
        for name, pair in models.items():
            for model, state in zip(pair, states[name], strict=True):
                model.load_state_dict(state)
            both = sides(*pair, shape)
            found = compare(name, both, shape, arguments.rounds)
            rows += found
            floors += [allowed(*each) for each in zip(found, (both.forward, both.step), strict=True)]
            if shape == SHAPES[0]:
                for side, run in zip(("theirs", "ours"), both.step, strict=True):
                    parts.append([f"{name}, {side}", *(f"{100 * share:.0f}" for share in shares(run).values())])
            if arguments.output:  # after each model, as the last ones take minutes
                write_text(arguments.output, page(rows, floors, parts, compiled))
    print(page(rows, floors, parts, compiled))


if __name__ == "__main__":
    main()
