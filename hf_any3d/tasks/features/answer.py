"""Answers of the extraction of features: a vector of each cloud."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hf_any3d.data.files import PointCloudData
from hf_any3d.tasks.answers import Answers, Row

FEATURES = ("pooled", "class_token", "tokens")
_MOST_SHOWN = 8


class FeatureAnswers(Answers):
    """The feature that is asked for; in rows a vector, of tokens their mean."""

    column = "features"
    compares = True

    def value(self, result: dict[str, np.ndarray]) -> np.ndarray:
        """Return the vector (features,)."""
        vectors = self._asked(result)
        return vectors.mean(axis=0) if self.settings["feature"] == "tokens" else vectors

    def row(self, result: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the vector in six digits, as numbers of tables."""
        return {self.column: [round(float(value), 6) for value in self.value(result)]}

    def line(self, row: Row) -> str:
        """Return the number of features, and the first of them."""
        start = " ".join(f"{value:.3f}" for value in row["features"][:4])
        return f"{len(row['features'])} features: {start} …"

    @staticmethod
    def cells(row: Row) -> Iterable[Row]:
        """Return one row with a column for each feature."""
        values = row.get("features") or ()
        return [{f"feature_{number}": value for number, value in enumerate(values)}] if values else []

    @staticmethod
    def feature() -> Any:
        """Return the type of a vector."""
        from datasets import List, Value

        return List(Value("float32"))

    def plain(self, result: dict[str, np.ndarray], cloud: PointCloudData) -> dict[str, Any]:
        """Return the feature, of tokens all with their centers."""
        del cloud
        name = self.settings["feature"]
        shown = {name: self._asked(result).tolist()}
        if name == "tokens":
            shown["centers"] = result["centers"].tolist()
        return shown

    def nearest(self, result: dict[str, np.ndarray], others: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Return the most similar clouds, by the cosine of their pooled features."""
        vectors = {name: other["pooled"] for name, other in others.items()}
        scores = {name: float(_unit(result["pooled"]) @ _unit(vector)) for name, vector in vectors.items()}
        return sorted(scores.items(), key=lambda item: -item[1])[:_MOST_SHOWN]

    def _asked(self, result: dict[str, np.ndarray]) -> np.ndarray:
        name = self.settings["feature"]
        if name not in result:
            expected = ", ".join(feature for feature in FEATURES if feature in result)
            raise ValueError(f"feature: this model has no {name}; expected {expected}")
        return result[name]


def _unit(features: np.ndarray) -> np.ndarray:
    return features / max(float(np.linalg.norm(features)), 1e-12)
