"""Do copies of published weights in torch-pointcloud's layout compute the same here? Its own classes are asked.

    pip install --no-deps --target DIR torch-pointcloud torch-geometric
    pip install --no-deps --target DIR spconv cumm pccm ccimport pybind11 fire termcolor lark portalocker ninja ocnn
    PYTHONPATH=DIR python -m studies.torch_pointcloud                 # outputs of both, for random weights
    PYTHONPATH=DIR python -m studies.torch_pointcloud --layouts       # names and shapes, for tests/conversions

Nothing is fetched: each of its models is built with random weights and running statistics, and its file is converted
as a published one. Some of what it computes with needs a compiled package that the package index lacks, or a GPU, and
is computed by the functions below. Sparse convolutions and curves of Point Transformer V3 are those of spconv and
ocnn; without these packages that model is left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import re
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from hf_any3d.conversions.programs import convert_files
from hf_any3d.hub.published_table import PUBLISHED
from hf_any3d.utils.atomic_files import write_text
from studies.tables import write_table

RESULTS = Path(__file__).parent / "results"
LAYOUTS = Path(__file__).parents[1] / "tests" / "conversions" / "torch_pointcloud_layouts.json"
OWNER = "torch-pointcloud/"
_NUM_POINTS = 1024
# Random cells of each cloud, out of 32 along each axis, for Point Transformer V3.
_CELLS, _EDGE = (3000, 1500), 32
_PACKAGES = ("torch-pointcloud", "torch-geometric", "spconv", "ocnn", "torch", "transformers", "hf-any3d")
# Tasks of its registry; models without a head answer with other things than ours.
_WITH_HEAD = ("classification", "semantic-segmentation", "part-segmentation", "detection")


def _rows_of(batch: torch.Tensor) -> list[torch.Tensor]:
    return [torch.nonzero(batch == number).flatten() for number in range(int(batch.max()) + 1)]


def _farthest(x: torch.Tensor, batch: torch.Tensor, ratio: float, **_: Any) -> torch.Tensor:
    """Farthest point sampling in place of torch-cluster's, from the first point of each cloud."""
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
            if OWNER + name in PUBLISHED:
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


def _attend(
    qkv: torch.Tensor, ends: torch.Tensor, max_seqlen: int, dropout_p: float, softmax_scale: float
) -> torch.Tensor:
    """Attention within runs of rows (rows, 3, heads, channels), in place of flash-attention's, which needs a GPU."""
    found = torch.empty_like(qkv[:, 0])
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        queries, keys, values = qkv[start:end].permute(1, 2, 0, 3).unbind(0)
        attended = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, scale=softmax_scale)
        found[start:end] = attended.transpose(0, 1)
    return found


def _import_ocnn() -> None:
    """Import ocnn, which imports a network of pictures from torchvision; empty modules stand in where that lacks."""
    names = [] if find_spec("torchvision") else ["torchvision", "torchvision.models"]
    for name in names:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].resnet18 = None  # type: ignore[attr-defined]
    try:
        importlib.import_module("ocnn.octree")
    finally:
        for name in names:
            del sys.modules[name]  # transformers would take them for the package


@contextmanager
def _on_a_cpu() -> Iterator[None]:
    """Let torch-pointcloud's Point Transformer V3 run without a GPU, with attention in float32."""
    attention: Any = importlib.import_module("torch_pointcloud.layers.serialized_attention")
    stand_in = SimpleNamespace(flash_attn_varlen_qkvpacked_func=_attend)
    with (
        patch.object(attention, "flash_attn", stand_in, create=True),
        patch.object(attention, "_FLASH_ATTN_AVAILABLE", True),
        # Its attention takes halves, whose rounding would hide smaller differences.
        patch.object(torch.Tensor, "half", torch.Tensor.float),
    ):
        yield


def built(name: str, entry: dict[str, Any]) -> torch.nn.Module:
    """Return torch-pointcloud's model, with random weights, biases, norms and running statistics."""
    torch.manual_seed(0)
    theirs = entry["fn"](**entry["hparams"]).eval()
    for parameter in theirs.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for buffer, value in theirs.named_buffers():
        if buffer.endswith("running_mean"):
            value.add_(torch.randn_like(value) * 0.1)
    if name.startswith("dgcnn.s3dis"):
        theirs.head.lins[2].bias.zero_()  # the authors' layer has none
    return theirs


def converted(name: str, theirs: torch.nn.Module) -> Any:
    """Return our model of the file that torch-pointcloud's model would be published as."""
    import hf_any3d

    with tempfile.TemporaryDirectory() as folder:
        save_file(
            {key: value.contiguous() for key, value in theirs.state_dict().items()}, f"{folder}/model.safetensors"
        )
        options = PUBLISHED[OWNER + name].files[None].options
        output = Path(folder, "converted")
        convert_files([f"{folder}/model.safetensors"], output, {key: options[key] for key in options if key != "kind"})
        (saved,) = json.loads((output / "config.json").read_text())["architectures"]
        return getattr(hf_any3d, saved).from_pretrained(output).eval()


@torch.no_grad()
def compare(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Compare the outputs of torch-pointcloud's class and ours for two clouds.

    Returns:
        `difference` and `median`, the largest difference of an output and the middle one, relative to the largest
        output; `outputs`, rows that were compared, and `equal`, the share of them with the same class.
    """
    answer = _voxel_logits if name.startswith("ptv3") else _point_logits
    expected, found = answer(name, entry)
    differences = (found - expected).abs().amax(dim=-1) / expected.abs().max()
    equal = (found.argmax(dim=-1) == expected.argmax(dim=-1)).double().mean()
    return {
        "name": name,
        "difference": float(differences.max()),
        "median": float(differences.median()),
        "outputs": differences.numel(),
        "equal": float(equal),
    }


def _point_logits(name: str, entry: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of both models that read points, theirs first."""
    theirs = built(name, entry)
    ours = converted(name, theirs)
    # A 3DETR has 2,048 tokens.
    num_points = 4 * _NUM_POINTS if name.startswith("3detr") else _NUM_POINTS
    points = torch.rand(2, num_points, 3) * 2 - 1  # no two points are equal, which have no order
    batch = torch.arange(2).repeat_interleave(num_points)
    further = torch.rand(2, num_points, 6) if name.startswith("dgcnn.s3dis") else None
    category = torch.tensor([3, 7])
    is_parts = "shapenetpart" in name
    given = (torch.nn.functional.one_hot(category, 16).float(),) if is_parts else ()
    features = None if further is None else further.flatten(0, 1)
    answer = theirs(features, points.flatten(0, 1), batch, *given)
    expected = answer["sem_cls_logits"] if isinstance(answer, dict) else answer
    inputs = points if further is None else torch.cat((further, points), dim=-1)
    found = ours(points=inputs, category=category).logits if is_parts else ours(points=inputs).logits
    if expected.ndim < found.ndim:
        expected = expected.unflatten(0, found.shape[:-1])
    # Point-BERT's heads have 40 rows, of which those of the classes are kept.
    return expected[..., : found.shape[-1]], found


def _voxel_logits(name: str, entry: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of both models that read voxels, theirs first."""
    convolutions: Any = importlib.import_module("spconv.pytorch.conv")
    with _on_a_cpu():
        theirs = built(name, entry)
        for module in theirs.modules():
            if isinstance(module, convolutions.SparseConvolution):
                module.train()  # on a CPU, spconv adds biases in training alone; nothing else differs
        ours = converted(name, theirs)
        cells = [torch.randint(_EDGE, (count, 3)).unique(dim=0) for count in _CELLS]
        features = [torch.rand(len(cell), 6) * 2 - 1 for cell in cells]
        batch = torch.cat([torch.full((len(cell),), number) for number, cell in enumerate(cells)])
        expected = theirs(torch.cat(features), torch.cat(cells), batch)
    places = [cell * ours.config.grid_size for cell in cells]
    inputs = [torch.cat(parts, dim=1) for parts in zip(places, features, strict=True)]
    found = ours(points=inputs, grid_coord=cells).logits
    return expected, torch.cat([logits[: len(cell)] for logits, cell in zip(found, cells, strict=True)])


def page(rows: Sequence[Mapping[str, Any]], left_out: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """Return the page of the study."""
    lines = ["# torch-pointcloud as a witness", ""]
    lines += ["| published name | largest difference | middle one | outputs | same class, % |"]
    lines += ["|---" * 5 + "|"]
    for row in rows:
        figures = f"{row['difference']:.1e} | {row['median']:.1e} | {row['outputs']:,} | {100 * row['equal']:.4g}"
        lines.append(f"| `{OWNER}{row['name']}` | {figures} |")
    about = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines += ["", *(f"Not compared: `{name}`: {reason}" for name, reason in left_out.items()), *[""] * bool(left_out)]
    lines += [_ABOUT.strip(), "", f"Versions: {about}.", ""]
    return "\n".join(lines)


_ABOUT = """
Weights were written by the classes of torch-pointcloud, with random numbers, and opened by our converters as published
files are. Differences are relative to the largest output. There are two clouds of 1,024 points, for 3DETR of 4,096,
and for Point Transformer V3 of about 2,860 and 1,470 voxels; an output is that of a cloud, point, box or voxel. The
program is `python -m studies.torch_pointcloud`. It shows that the architectures agree, not that published weights
reach their figures.

DGCNN for rooms looks for neighbors among features. Of two that are nearly as far, rounding decides, so that its
outputs differ more; all classes are equal.

On a CPU, torch-pointcloud does not run as it is installed:

- Farthest point sampling, neighbors and points in a ball are torch-cluster's, which has to be compiled. A plain form
  stands in; sampling starts at the first point of a cloud, as ours does.
- Flash attention needs a GPU. Plain attention within the same patches stands in, in float32; the attention without it
  that the library offers repeats voxels to fill a patch, which changes its outputs.
- spconv 2.3.8 adds biases on a CPU only in training, and with several threads its sums change from call to call: two
  calls differed by 0.4 % of the largest output, and ours from theirs by up to 5 %. Its convolutions are set to
  training, and one thread is used.
- ocnn imports torchvision for a network that is not used here; an empty module stands in.
- `ptv3-base.s3dis-area5` uses attention without flash attention. A cloud with fewer voxels than a patch, 128, in a
  deep stage is repeated there to fill it, and here is not; such clouds differ by up to 0.2 %.
"""


def versions_of(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"Python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Write the layouts, or compare outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the page and the table")
    arguments = parser.parse_args()
    try:
        _import_ocnn()
    except ImportError as error:
        print(f"no Point Transformer V3: {error}")
    if arguments.layouts:
        lines = [f'"{name}": {json.dumps(layout)}' for name, layout in layouts().items()]
        LAYOUTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    # With several threads, sums of spconv on a CPU change from call to call.
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for name, entry in registered(_WITH_HEAD):
        try:
            rows.append(compare(name, entry))
            print(f"{name}: {rows[-1]['difference']:.1e}, {100 * rows[-1]['equal']:.2f} % the same class", flush=True)
        except ImportError as error:
            left_out[name] = str(error)
            print(f"{name}: not compared ({error})", flush=True)
    summary = {"runs": rows, "left_out": left_out, "versions": versions_of(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    write_table(arguments.output / "torch_pointcloud.parquet", summary)
    write_text(arguments.output / "torch_pointcloud.md", page(rows, left_out, summary["versions"]))


if __name__ == "__main__":
    main()
