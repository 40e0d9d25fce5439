"""The features of learned scans, in a file beside the model, to which scans are added later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hf_any3d.data.checks.scan_checksums import STORE
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.few_scans.labeled_scans import LabeledScans
from hf_any3d.utils.atomic_files import atomic_write


@dataclass(frozen=True)
class Examples:
    """Scans with their features, before these are standardized; kept beside the model, to add scans later."""

    scans: LabeledScans
    features: np.ndarray  # (scans, width) float32
    processor: PointCloudProcessor
    views: np.ndarray | None = None  # the same of a view of each scan from one side
    learns_views: bool = False  # whether the head learns the views, too

    def save(self, folder: Path) -> None:
        """Write the features into a folder with a model and its processor."""
        described = asdict(self.scans)
        texts = {name: json.dumps(described[name]) for name in ("classes", "digests", "names")}
        texts |= {"learns_views": json.dumps(self.learns_views)}
        tensors = {name: torch.from_numpy(described[name]) for name in ("labels", "groups")}
        if self.views is not None:
            tensors["views"] = torch.from_numpy(self.views)
        with atomic_write(folder / STORE) as unfinished:
            save_file({"features": torch.from_numpy(self.features), **tensors}, unfinished, metadata=texts)

    @classmethod
    def load(cls, folder: Path) -> Examples:
        """Read what `save` wrote."""
        with safe_open(folder / STORE, framework="numpy") as file:
            texts = {name: json.loads(text) for name, text in file.metadata().items() if name != "format"}
            features, labels, groups = (file.get_tensor(name) for name in ("features", "labels", "groups"))
            views = file.get_tensor("views") if "views" in file.keys() else None  # noqa: SIM118
        scans = LabeledScans(texts["classes"], labels, groups, texts["digests"], texts["names"])
        learns_views = texts.get("learns_views", False)  # models before did not
        return cls(scans, features, PointCloudProcessor.from_pretrained(folder), views, learns_views)
