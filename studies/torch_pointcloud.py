"""Do copies of published weights in torch-pointcloud's layout compute the same here? Its own classes are asked.

    pip install --no-deps torch-pointcloud torch-geometric     # in an environment of its own; no compiled package
    python -m studies.torch_pointcloud                         # outputs of both, for random weights
    python -m studies.torch_pointcloud --layouts               # names and shapes, for tests/conversions

Nothing is fetched: each of its models is built with random weights and running statistics, and its file is converted
as a published one. What it takes from a compiled package, sampling and neighbors, is computed by the functions below.
Sparse convolutions are not, so that of Point Transformer V3 only names and shapes are compared.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hf_any3d.conversions.programs import convert_files
from hf_any3d.hub.published_table import PUBLISHED

LAYOUTS = Path(__file__).parents[1] / "tests" / "conversions" / "torch_pointcloud_layouts.json"
_OWNER = "torch-pointcloud/"
_NUM_POINTS = 1024
# Tasks of its registry; models without a head answer with other things than ours.
_WITH_HEAD = ("classification", "semantic-segmentation", "part-segmentation", "detection")


def _rows_of(batch: torch.Tensor) -> list[torch.Tensor]:
    return [torch.nonzero(batch == number).flatten() for number in range(int(batch.max()) + 1)]


def _farthest(x: torch.Tensor, batch: torch.Tensor, ratio: float, **_: Any) -> torch.Tensor:
    chosen = []
    for rows in _rows_of(batch):
        distance = torch.full((len(rows),), torch.inf)
        number = 0
        for _ in range(round(ratio * len(rows))):
            chosen.append(rows[number])
            distance = torch.minimum(distance, (x[rows] - x[rows[number]]).pow(2).sum(dim=1))
            number = int(distance.argmax())
    return torch.stack(chosen)


def _nearest(x: torch.Tensor, y: torch.Tensor, k: int, batch_x: Any, batch_y: Any, **_: Any) -> torch.Tensor:
    pairs = []
    for rows, centers in zip(_rows_of(batch_x), _rows_of(batch_y), strict=True):
        index = torch.cdist(y[centers].double(), x[rows].double()).topk(k, largest=False).indices
        pairs.append(torch.stack((centers.repeat_interleave(k), rows[index.flatten()])))
    return torch.cat(pairs, dim=1)


def _in_ball(
    x: torch.Tensor, y: torch.Tensor, r: float, batch_x: Any, batch_y: Any, max_num_neighbors: int = 32, **_: Any
) -> torch.Tensor:
    pairs = []
    for rows, centers in zip(_rows_of(batch_x), _rows_of(batch_y), strict=True):
        for center, distances in zip(centers, torch.cdist(y[centers].double(), x[rows].double()), strict=True):
            near = torch.nonzero(distances <= r).flatten()[:max_num_neighbors]
            pairs.append(torch.stack((center.repeat(len(near)), rows[near])))
    return torch.cat(pairs, dim=1)


def registered(tasks: Collection[str] = ("pretraining", *_WITH_HEAD)) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield torch-pointcloud's models whose names are published ones here, with the entries of its registry."""
    registry: Any = importlib.import_module("torch_pointcloud.models._registry")
    pool: Any = importlib.import_module("torch_geometric.nn.pool")
    pool.fps = _farthest
    pool.knn = _nearest
    pool.radius = _in_ball
    pool.knn_graph = lambda x, k, batch=None, **_: _nearest(x, x, k, batch, batch).flip(0)
    importlib.import_module("torch_pointcloud.models")
    for task in tasks:
        for name, entry in registry._REGISTERED_MODELS[task].items():
            if _OWNER + name in PUBLISHED:
                yield name, entry


def layouts() -> dict[str, Any]:
    """Return for each name the shapes of its tensors, or an earlier name with the same ones.

    Tensors of equal layers are one, with "#" for the number of the layer, and how many there are.
    """
    found: dict[str, Any] = {}
    for name, entry in registered():
        try:
            state = entry["fn"](**entry["hparams"]).state_dict()
        except ImportError as error:
            print(f"{name}: {error}")
            continue
        layout: dict[str, list[Any]] = {}
        for tensor, value in state.items():
            shape = list(value.shape)
            block = re.search(
                r"(?<=blocks\.|layers\.)\d+(?=\.(?:norm|attn|mlp|ln_|self_attn|multihead_attn|linear))", tensor
            )
            pattern = tensor if block is None else f"{tensor[: block.start()]}#{tensor[block.end() :]}"
            first = layout.setdefault(pattern, [shape, 0])
            if block is not None and first == [shape, int(block[0])]:
                first[1] += 1
            elif block is not None:
                layout[tensor] = [shape, 0]
        found[name] = next((earlier for earlier, other in found.items() if other == layout), layout)
    return found


@torch.no_grad()
def compare(name: str, entry: dict[str, Any]) -> str:
    """Return the largest difference of the outputs of torch-pointcloud's class and ours, relative to the largest."""
    import hf_any3d

    torch.manual_seed(0)
    theirs = entry["fn"](**entry["hparams"]).eval()
    for parameter in theirs.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for buffer, value in theirs.named_buffers():
        if buffer.endswith("running_mean"):
            value.add_(torch.randn_like(value) * 0.1)
    if "s3dis" in name:
        theirs.head.lins[2].bias.zero_()  # the authors' layer has none
    with tempfile.TemporaryDirectory() as folder:
        save_file(
            {key: value.contiguous() for key, value in theirs.state_dict().items()}, f"{folder}/model.safetensors"
        )
        options = PUBLISHED[_OWNER + name].files[None].options
        output = Path(folder, "converted")
        convert_files([f"{folder}/model.safetensors"], output, {key: options[key] for key in options if key != "kind"})
        (saved,) = json.loads((output / "config.json").read_text())["architectures"]
        ours = getattr(hf_any3d, saved).from_pretrained(output).eval()
    points = torch.randn(2, _NUM_POINTS, 3).clamp(-1, 1)
    batch = torch.arange(2).repeat_interleave(_NUM_POINTS)
    further = torch.rand(2, _NUM_POINTS, 6) if "s3dis" in name and "dgcnn" in name else None
    category = torch.tensor([3, 7])
    is_parts = "shapenetpart" in name
    given = (torch.nn.functional.one_hot(category, 16).float(),) if is_parts else ()
    features = None if further is None else further.flatten(0, 1)
    answer = theirs(features, points.flatten(0, 1), batch, *given)
    expected = answer["sem_cls_logits"] if isinstance(answer, dict) else answer
    inputs = points if further is None else torch.cat((further, points), dim=-1)
    found = ours(points=inputs, category=category).logits if is_parts else ours(points=inputs).logits
    # Point-BERT's heads have 40 rows, of which those of the classes are kept.
    expected = expected.unflatten(0, found.shape[:-1])[..., : found.shape[-1]]
    difference = (found - expected).abs().max() / expected.abs().max()
    return f"{difference:.1e}"


def main() -> None:
    """Write the layouts, or compare outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", action="store_true")
    if parser.parse_args().layouts:
        lines = [f'"{name}": {json.dumps(layout)}' for name, layout in layouts().items()]
        LAYOUTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    for name, entry in registered(_WITH_HEAD):
        try:
            print(f"{name}: {compare(name, entry)}", flush=True)
        except ImportError as error:
            print(f"{name}: not compared ({error})")


if __name__ == "__main__":
    main()
