"""Points that are labeled next: what a tile model gains by suggested ones, beside as many by chance.

    python -m survey.studies.suggestions --tiles FOLDER --more FILE --output DIR

Each place is left out in turn: a model learns the others, a number of points of the place are given their true class,
and the model that has learned these further is judged on other points of the place. Chance draws the points evenly.
Labels come from the files in place of a person, who would make mistakes.

Results: `../results/inventory_suggestions.md`. Runs are stored in the output folder and not repeated.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_any3d.data.classes.class_rule import Classes, ClassRule
from hf_any3d.data.classes.las_classes import CURRENT
from hf_any3d.evaluation.segmentation import class_ious
from hf_any3d.modeling.layers.losses import IGNORED
from hf_any3d_survey.local_features import LocalFeaturesConfig, LocalFeaturesForPointCloudSegmentation
from hf_any3d_survey.local_features.fitting import Rows, fit_network, keep_rows, logits_of, with_added
from hf_any3d_survey.processor import RETURNS, LocalFeaturesProcessor
from hf_any3d_survey.tiles.arguments import TilesArguments
from hf_any3d_survey.tiles.examples import rows_of
from hf_any3d_survey.tiles.places import places_of
from hf_any3d_survey.tiles.reading import look_at, read_tile, tile_files
from hf_any3d_survey.tiles.suggestions import choose_points, choose_unsure, spread_of
from studies.runs import kept_run

CANDIDATES, JUDGED = 6000, 6000
"""Points of a tile among which some are chosen, and others by which the model is judged."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not stored yet, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=Path, required=True, help="Folder of labeled tiles.")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="Further labeled files.")
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("outputs/suggestions"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    study = Study(tile_files([arguments.tiles, *arguments.more]))
    found = {}
    for seed in arguments.seeds:
        for place in np.unique(study.place):
            name = study.name_of(place)
            settings = {"place": name, "points": arguments.points, "seed": seed}
            path = arguments.output / f"{name}-{arguments.points}-{seed}.json"

            def run(place: int = place, seed: int = seed) -> dict[str, Any]:
                return study.run(place, arguments.points, seed)

            found[name, seed] = kept_run(path, settings, run)
            print(name, seed, found[name, seed], flush=True)
    for name in dict.fromkeys(name for name, _ in found):
        rows = [values for (own, _), values in found.items() if own == name]
        cells = [
            f"{np.mean([row[key] for row in rows]):.3f}" for key in ("before", "chance", "suggested", "all weighted")
        ]
        print(f"| {name} | {' | '.join(cells)} |")


class Study:
    """Rows of all tiles: those that are learned, and labeled points that are chosen among or judged.

    Args:
        files: Labeled tiles.
    """

    def __init__(self, files: Sequence[Path]):
        clouds = [read_tile(path) for path in files]
        tiles = [look_at(path, cloud) for path, cloud in zip(files, clouds, strict=True)]
        rule = ClassRule.parse(None, ("vegetation=3,4,5",))
        self.classes, _ = Classes.among(sum((tile.codes for tile in tiles), Counter()), rule, CURRENT, 500)
        self.files = list(files)
        self.place = places_of(tiles)
        self.processor = LocalFeaturesProcessor(features=["xyz", *RETURNS])
        self.learned = []
        self.drawn = []
        for number, (tile, cloud) in enumerate(zip(tiles, clouds, strict=True)):
            place = int(self.place[number])
            arguments = TilesArguments(seed=0)
            self.learned.append(rows_of(cloud, tile, number, place, self.classes, self.processor, arguments)[0])
            assert cloud.labels is not None
            labels = self.classes.number(cloud.labels)
            usable = np.random.default_rng(number).permutation(np.flatnonzero(labels != IGNORED))
            usable = usable[: CANDIDATES + JUDGED]
            scan = self.processor.describe(cloud)
            features = scan.neighborhoods(np.arange(len(cloud))).features(usable)
            places = cloud.points[usable].astype(np.float64) * scan.factor + scan.origin
            self.drawn.append((features, labels[usable], places))

    def name_of(self, place: int) -> str:
        """Return the first word of the names of a place's tiles."""
        return next(path.stem.split("_")[0] for path, own in zip(self.files, self.place, strict=True) if own == place)

    def run(self, place: int, count: int, seed: int) -> dict[str, float]:
        """Return the mean IoU on a place before and after some of its points were added, by chance and suggested."""
        model = self._learned_elsewhere(place, seed)
        tiles = [drawn for drawn, own in zip(self.drawn, self.place, strict=True) if own == place]
        candidates = [np.concatenate([values[:CANDIDATES] for values in parts]) for parts in zip(*tiles, strict=True)]
        judged = [np.concatenate([values[CANDIDATES:] for values in parts]) for parts in zip(*tiles, strict=True)]
        features, labels, places = candidates
        probabilities = torch.from_numpy(logits_of(model, features)[0]).softmax(dim=1).numpy()
        highest = np.sort(probabilities, axis=1)
        core = model.local_features
        with torch.no_grad():
            hidden = core.hidden_layers(core.standardize(torch.from_numpy(features)))[-1].numpy()
        margins = highest[:, -1] - highest[:, -2]
        chosen = {
            "chance": np.random.default_rng(seed).permutation(len(labels))[:count],
            "suggested": choose_unsure(hidden, margins, places, count, seed),
            "all weighted": choose_points(
                hidden, places, count, spread_of(places, count), seed, (1 - margins) ** 2 + 1e-3
            ),
        }
        found = {"before": self._iou(model, judged)}
        for name, rows in chosen.items():
            zeros = np.zeros(len(rows), np.int64)
            added = Rows(features[rows], labels[rows], zeros, zeros, zeros)
            after = with_added(model, added, model.config, self.processor.may_miss, seed)
            found[name] = self._iou(after, judged)
            found[f"{name}, right before"] = float((probabilities[rows].argmax(axis=1) == labels[rows]).mean())
        return found

    def _learned_elsewhere(self, place: int, seed: int) -> LocalFeaturesForPointCloudSegmentation:
        """Return a model of all other places, with the rows that it stores."""
        rows = Rows.joined([part for part, own in zip(self.learned, self.place, strict=True) if own != place])
        config = LocalFeaturesConfig(
            in_channels=3 + rows.features.shape[1],
            hidden_sizes=(64,),
            members=2,
            num_labels=len(self.classes.names),
        )
        model = fit_network(rows, config, self.processor.may_miss, seed)
        keep_rows(model, rows, seed)
        return model

    def _iou(self, model: LocalFeaturesForPointCloudSegmentation, judged: Sequence[np.ndarray]) -> float:
        """Return the mean IoU over the classes of the place."""
        features, labels, _ = judged
        matrix = np.zeros((len(self.classes.names),) * 2)
        np.add.at(matrix, (labels, logits_of(model, features)[0].argmax(axis=1)), 1)
        return float(class_ious(matrix)[matrix.sum(axis=1) > 0].mean())


if __name__ == "__main__":
    main()
