"""A stored run of a Point Transformer V3 encoder: weights and voxels made from names, and what it returned."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.reference.fill import fill, points

FOLDER = Path(__file__).parents[1] / "reference"


class Ptv3Case:
    """Reads `tests/reference/{name}.json` and `.safetensors`."""

    def __init__(self, name: str):
        self.manifest = json.loads((FOLDER / f"{name}.json").read_text())
        stored = FOLDER / f"{name}.safetensors"
        self.expected = load_file(stored) if stored.exists() else {}

    @cached_property
    def original(self) -> dict[str, torch.Tensor]:
        """The state dict of the released program."""
        state = {}
        for name, (shape, dtype) in self.manifest["state_dict"].items():
            if name.endswith("rope.inv_freq"):
                state[name] = 10.0 ** (-torch.arange(shape[0], dtype=torch.float64) / shape[0]).float()
            else:
                tensor = torch.as_tensor(fill(name, shape, dtype))
                state[name] = 4 * tensor if name.endswith("attn.qkv.weight") else tensor
        return state

    @property
    def on_meta(self) -> dict[str, torch.Tensor]:
        """Its names, shapes and types, without numbers."""
        shapes = self.manifest["state_dict"]
        return {
            name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for name, (shape, dtype) in shapes.items()
        }

    @property
    def raw(self) -> list[dict[str, np.ndarray]]:
        """`coord (points, 3)`, `color` in 0 to 255 and `normal` of each cloud, before any transform."""
        clouds = []
        for spec in self.manifest["input"]["clouds"]:
            values = points(spec["name"], 1, spec["count"], 9)[0]
            normal = values[:, 6:9] - np.float32(0.5)
            normal = normal / np.linalg.norm(normal, axis=1, keepdims=True)
            cloud = {
                "coord": values[:, :3] * np.array(spec["stretch"], np.float32),
                "color": values[:, 3:6] * np.float32(255),
                "normal": normal,
            }
            clouds.append(cloud | {name: np.zeros_like(cloud[name]) for name in spec.get("zero", ())})
        return clouds

    @property
    def voxels(self) -> dict[str, list[torch.Tensor]]:
        """`points` `(voxels, in_channels)` and `grid_coord` `(voxels, 3)` of each cloud."""
        expected, counts = self.expected, self.manifest["stages"]["s0"]["points"]
        made = []
        for cloud, name, coord in zip(self.raw, "ab", expected["s0.coord"].split(counts), strict=True):
            kept = expected[f"selected.{name}"].long()
            channels = [coord, torch.from_numpy(cloud["color"][kept] / np.float32(255))]
            if "normal" in self.manifest["input"]["feat"]:
                channels.append(torch.from_numpy(cloud["normal"][kept]))
            made.append(torch.cat(channels, dim=1).float())
        return {"points": made, "grid_coord": list(expected["s0.grid_coord"].long().split(counts))}

    @property
    def mask(self) -> torch.Tensor:
        """The masked voxels of the run "masked", `(voxels,)`."""
        return torch.arange(sum(self.manifest["stages"]["s0"]["points"])) % 3 == 0

    def sampled(self, key: str, ours: torch.Tensor) -> torch.Tensor:
        """The rows of a tensor that are stored."""
        rows = self.manifest["outputs"][key]["rows"]
        return ours if rows == "all" else ours[:: int(rows.strip("[:]"))]

    def error(self, key: str, ours: torch.Tensor) -> float:
        """Largest difference from a stored tensor."""
        assert list(ours.shape) == self.manifest["outputs"][key]["full_shape"], key
        return float((self.sampled(key, ours).float() - self.expected[key]).abs().max())

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the released program's constructor."""
        return self.manifest["constructor_args"]

    @property
    def runs(self) -> list[str]:
        """Names of the runs."""
        return list(self.manifest["runs"])


def ptv3_original(name: str = "utonia") -> dict[str, dict]:
    """The content of a `.pth` of the authors, of reduced widths: settings and tensors."""
    case = Ptv3Case(f"ptv3_{name}")
    return {"config": {"shuffle_orders": True, "enable_flash": True} | case.arguments, "state_dict": case.original}


class SupervisedCase(Ptv3Case):
    """A stored run of the original, supervised layout; `tiny` of its small clouds."""

    def __init__(self, name: str, kind: str = ""):
        super().__init__(name)
        self.kind = kind
        # The first run's indices have a prefix where they are not those of all runs.
        starts = {"ptv1_options": "normal.", "ptv1_nuscenes": "f0."}
        self.prefix = f"{kind}." if kind else starts.get(name, "")
        for key in [key for key in self.expected if self.prefix and key.startswith(f"{self.prefix}s")]:
            self.expected.setdefault(key.removeprefix(self.prefix), self.expected[key])

    def tensors(self, names: str = "state_dict") -> dict[str, torch.Tensor]:
        """The state dict of the released program, one of several of the manifest."""
        factors = re.findall(r"names ending ([\w.]+) by (\d+)", self.manifest["weights"])
        factors += [("modulation.1.weight", "2"), *((f"seg_heads.{number}.weight", "6") for number in range(3))]
        state = {}
        for name, (shape, dtype) in self.manifest[names].items():
            # In double precision the numbers are the same.
            tensor = torch.as_tensor(fill(name, shape, dtype.replace("float64", "float32")))
            for ending, factor in factors:
                if name.endswith(ending):
                    tensor = tensor * float(factor)
            if name == "logit_scale":
                tensor = torch.tensor(2.0)
            state[name] = tensor / tensor.norm(dim=1, keepdim=True) if name == "class_embedding" else tensor
        return state

    @property
    def specs(self) -> list[dict[str, Any]]:
        """What the clouds are made from."""
        given = self.manifest["input"]
        return given["tiny_clouds"] if self.kind == "tiny" else given.get("clouds") or [given["cloud"]]

    @property
    def raw(self) -> list[dict[str, np.ndarray]]:
        """Each cloud before any transform; also `strength (points, 1)`."""
        clouds = []
        for spec in self.specs:
            values = points(spec["name"], 1, spec["count"], 10)[0]
            coord = values[:, :3] * np.array(spec["stretch"], np.float32)
            count, factor = spec.get("far", (0, 1.0))
            coord[:count] *= np.float32(factor)
            normal = values[:, 6:9] - np.float32(0.5)
            normal = normal / np.linalg.norm(normal, axis=1, keepdims=True)
            color = values[:, 3:6] * np.float32(255)
            clouds.append({"coord": coord, "color": color, "normal": normal, "strength": values[:, 9:10]})
        return clouds

    @property
    def voxels(self) -> dict[str, list[torch.Tensor]]:
        """`points` `(voxels, in_channels)` and `grid_coord` `(voxels, 3)` of each cloud."""
        stored = self.expected
        counts = stored["s0.offset"].diff(prepend=torch.zeros(1)).int().tolist()
        steps = {step[0]: step[1:] for step in self.manifest["input"].get("transform", ())}
        names = {1: [""], 2: ["a", "b"]}[len(counts)] if self.kind != "tiny" else ["t"]
        made = []
        for cloud, name, coord in zip(self.raw, names, stored["s0.coord"].split(counts), strict=True):
            kept = stored[f"selected.{name}" if name else "selected"].long()
            if not name:
                kept = kept[stored["fragment_index"][: counts[0]].long()]
            channels = {one: torch.from_numpy(values[kept]) for one, values in cloud.items()}
            if "NormalizeColor" in steps:
                divisor, shift = steps["NormalizeColor"]
                channels["color"] = channels["color"] / divisor - shift
            read = self.manifest["input"]["feat"].split(", ")
            made.append(torch.cat([coord, *(channels[one] for one in read if one != "coord")], dim=1).float())
        return {"points": made, "grid_coord": list(stored["s0.grid_coord"].long().split(counts))}

    def labels(self, classes: int) -> torch.Tensor:
        """Class of each voxel, -1 where it has none, `(voxels,)`."""
        cells = torch.cat(self.voxels["grid_coord"])
        labels = (cells[:, 0] // 5 + 2 * (cells[:, 1] // 7) + cells[:, 2] // 9) % classes
        return torch.where(torch.arange(len(labels)) % 7 == 3, -1, labels)


class Find3DCase(SupervisedCase):
    """A stored run of Find3D: a raw cloud of an object, its voxels, texts and labels."""

    def tensors(self, names: str = "state_dict") -> dict[str, torch.Tensor]:
        """The state dict of the released program."""
        state = super().tensors(names)
        for name, factor in re.findall(r"names exactly ([\w.]+) by (\d+)", self.manifest["weights"]):
            state[name] = state[name] * float(factor)
        return state | {"ln_logit_scale": torch.tensor(2.6)}

    def cloud(self, part: str = "input") -> dict[str, np.ndarray]:
        """Row of a dataset: `points`, `colors` from 0 to 1 and `normals`; of the "input" or the "benchmark"."""
        spec = self.manifest[part]["cloud"]
        values = points(spec["name"], 1, spec["count"], 9)[0]
        normals = values[:, 6:9] - np.float32(0.5)
        shift, stretch = (np.array(spec[name], np.float32) for name in ("shift", "stretch"))
        return {
            "points": values[:, :3] * stretch * np.float32(spec["scale"]) + shift,
            "colors": values[:, 3:6],
            "normals": normals / np.linalg.norm(normals, axis=1, keepdims=True),
        }

    def rows(self, part: str = "") -> tuple[torch.Tensor, torch.Tensor]:
        """`points (voxels, 9)` and `grid_coord (voxels, 3)` as stored; `part` is "" or "benchmark."."""
        cloud, kept = self.cloud("benchmark" if part else "input"), self.expected[f"{part}kept"].long().numpy()
        channels = (self.expected[f"{part}coord"].numpy(), 2 * cloud["colors"][kept] - 1, cloud["normals"][kept])
        return torch.from_numpy(np.concatenate(channels, axis=1)).float(), self.expected[f"{part}grid_coord"].long()

    @property
    def voxels(self) -> dict[str, list[torch.Tensor]]:
        """`points` and `grid_coord` of the cloud."""
        values, cells = self.rows()
        return {"points": [values], "grid_coord": [cells]}
