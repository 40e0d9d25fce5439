"""Answers of autoencoders: a cloud as codes and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_any3d.data.files import PointCloudData
from hf_any3d.tasks.answers import Answers, Row, View
from hf_any3d.visualization.viewer import CloudView

SCORES = ("chamfer_l1", "chamfer_l2", "f_score")


class ReconstructionAnswers(Answers):
    """Distances between a cloud and its reconstruction, and its codes."""

    column = "token_ids"

    def row(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the scores and the codes, one for each patch."""
        return {name: result[name] for name in SCORES} | {self.column: result["token_ids"].tolist()}

    def line(self, row: Row) -> str:
        """Return distances in thousandths, as model cards state them, and how many codes there are."""
        distances = "   ".join(f"CD-{n.upper()} {1000 * row[f'chamfer_{n}']:.2f}e-3" for n in ("l1", "l2"))
        codes = f"{len(set(row['token_ids']))} codes for {len(row['token_ids'])} patches"
        return f"{distances}   F-score {row['f_score']:.3f}   {codes}"

    @staticmethod
    def cells(row: Row) -> Iterable[Row]:
        """Return one row of the scores; codes are in JSON alone."""
        return [] if "error" in row else [{name: row[name] for name in SCORES}]

    def view(self, cloud: PointCloudData, result: dict[str, Any]) -> View:
        """Return the cloud and its reconstruction, side by side."""
        del cloud
        clouds = [
            CloudView(result[key], title=title)
            for key, title in (("points", "input"), ("reconstruction", "reconstruction"))
        ]
        scores = f"Chamfer distance (L1) {result['chamfer_l1']:.4f}, F-score {result['f_score']:.2f}"
        # How many of the autoencoder's codes the shape needs
        codes = len(np.unique(result["token_ids"]))
        note = f"{scores}; {codes} different codes of {len(result['token_ids'])} patches"
        return View(clouds, {"columns": 2, "rows_share_frame": True}, note=note)
