"""A few labeled scans of ten classes that no feature has seen, of three kinds: which way answers best, at what cost.

    python -m studies.few_scans --kicad FOLDER                              # heads on frozen features, in minutes
    python -m studies.few_scans --kicad FOLDER --trained trained both --draws 4    # what is trained, too
    python -m studies.few_scans --kicad FOLDER --paired --draws 5                  # `--way both` against no settings

The plan, chosen before the first result, and the results: `results/few_scans.md`, from which
`hf_any3d/training/few_scans/plan.py` follows. Features and runs are stored and not repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Value
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from transformers import AutoModel

from hf_any3d import ActModel, AutoModelForPointCloudClassification, PointFeaturesConfig, PointFeaturesModel
from hf_any3d.training.few_scans.linear_head import fit_head
from hf_any3d.training.few_scans.training import learn_scans
from hf_any3d.training.request_builder import scans_request
from studies.donors import donors_folder
from studies.few_scans_draws import CLASSES_OF_A_DRAW, SETS, SHOTS, Draw, Shapes, draw, parts
from studies.runs import kept_run, machine, mean_gain, stopwatch, write_results

DRAWS = 12
COPIES = 8
TRAINED_SHOTS = (5, 10)
"""Shapes of a class from which models are trained."""
DEFAULT, BOTH = "default", "both"
"""The ways that `--paired` compares: `hf-any3d train` without settings, and with `--way both`."""
SOURCES = ("descriptors", "encoder", "views")


@dataclass(frozen=True)
class Way:
    """A head on frozen features.

    Args:
        sources: Of `SOURCES`.
        copies: Slightly changed copies over which features are averaged.
        strength: Of `fit_head`.
        joined: Whether one head reads all sources; else the answers of a head for each are averaged.
        prototypes: Whether the nearest class mean answers instead of logistic regression.
    """

    sources: tuple[str, ...]
    copies: int = COPIES
    strength: float = 1.0
    joined: bool = True
    prototypes: bool = False

    def answer(self, features: dict[tuple[str, int], np.ndarray], division: Draw) -> np.ndarray:
        """Learn a draw, and return logits `(test shapes, classes)`."""
        found = [features[source, self.copies if source != "views" else 1] for source in self.sources]
        found = [np.concatenate(found, axis=1)] if self.joined else found
        learn = nearest_means if self.prototypes else self.head
        return np.mean([log_softmax(learn(rows.astype(np.float64), division), axis=1) for rows in found], axis=0)

    def head(self, features: np.ndarray, division: Draw) -> np.ndarray:
        """Return the logits of logistic regression."""
        head = fit_head(features[division.train], division.labels, CLASSES_OF_A_DRAW, self.strength)
        return head.logits(features[division.test])


def nearest_means(features: np.ndarray, division: Draw) -> np.ndarray:
    """Return negative squared distances to class means, in standardized features `(shapes, width)`."""
    rows = features[division.train]
    features = (features - rows.mean(axis=0)) / (rows.std(axis=0) + 1e-6)
    rows, test = features[division.train], features[division.test]
    means = np.stack([rows[division.labels == label].mean(axis=0) for label in range(CLASSES_OF_A_DRAW)])
    return -((test[:, None] - means) ** 2).mean(axis=2)  # (test shapes, classes)


_BOTH = ("descriptors", "encoder")
WAYS: dict[str, Way] = {
    "descriptors": Way(("descriptors",), copies=1),
    "encoder": Way(("encoder",), copies=1),
    "encoder, 8 copies": Way(("encoder",)),
    "descriptors and encoder": Way(_BOTH, copies=1),
    "descriptors and encoder, 8 copies": Way(_BOTH),
    "descriptors and encoder, 8 copies, answers averaged": Way(_BOTH, joined=False),
    "encoder, 8 copies, nearest means": Way(("encoder",), prototypes=True),
    "encoder, 8 copies, strength 0.1": Way(("encoder",), strength=0.1),
    "encoder, 8 copies, strength 10": Way(("encoder",), strength=10.0),
    "descriptors and encoder, 8 copies, strength 0.1": Way(_BOTH, strength=0.1),
    "depth views": Way(("views",)),
    "encoder, 8 copies, and depth views": Way(("encoder", "views")),
    "descriptors and encoder, 8 copies, and depth views": Way((*_BOTH, "views")),
}


def features_of(points: np.ndarray, source: str, copies: int, encoder: ActModel | None = None) -> np.ndarray:
    """Compute one set of frozen features of shapes as `hf-any3d train` does, `(shapes, width)`.

    Those of the packaged encoder, or of another one that has learned shapes with the same axis up.
    """
    config: dict[str, Any] = {"features": [source], "copies": copies}
    if source == "views":
        settings = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "image_size": 224}
        vision = AutoModel.from_pretrained(donors_folder() / "dinov2", dtype=torch.bfloat16)
        model = PointFeaturesModel.from_parts_pretrained(vision=vision, **config, **settings)
    elif encoder is not None:
        model = PointFeaturesModel.from_parts_pretrained(encoder=encoder, **config)
    else:
        model = PointFeaturesModel(PointFeaturesConfig(**config))
    with torch.no_grad():
        pieces = torch.from_numpy(points).float().split(16)
        return torch.cat([model.eval()(points=piece).pooler_output.float() for piece in pieces]).numpy()


def stored_features(
    name: str, shapes: Shapes, source: str, copies: int, folder: Path, encoder: ActModel | None = None
) -> np.ndarray:
    """Read features of a set, computed on the first call; see `features_of`."""
    path = folder / f"{name}-{source}-{copies}.npy"
    if not path.is_file():
        with stopwatch() as spent:
            found = features_of(shapes.points, source, copies, encoder)
        print(f"{path.stem}: {1000 * spent['cpu_seconds'] / len(found):.0f} CPU ms a shape", flush=True)
        np.save(path, found)
    return np.load(path)


def frozen_runs(name: str, shapes: Shapes, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Judge all ways on all draws of a set."""
    ways = {title: way for title, way in WAYS.items() if options.views or "views" not in way.sources}
    needed = {(source, 1 if source == "views" else way.copies) for way in ways.values() for source in way.sources}
    features = {pair: stored_features(name, shapes, *pair, options.output_dir) for pair in sorted(needed)}
    runs = []
    for shots in options.shots:
        for number in range(DRAWS):
            division = draw(shapes, shots, number)
            for title, way in ways.items():
                logits = way.answer(features, division)
                right = logits.argmax(axis=1) == division.test_labels
                about = {"set": name, "way": title, "shots": shots, "draw": number, "test_rows": len(right)}
                error = calibration_error(softmax(logits, axis=1), division.test_labels)
                runs.append({**about, "accuracy": float(right.mean()), "calibration_error": error})
    return runs


def rows_of(shapes: Shapes, index: np.ndarray, labels: np.ndarray) -> Dataset:
    """Return rows for training."""
    features = Features(
        points=Array2D(shapes.points.shape[1:], "float32"),
        label=ClassLabel(names=[f"class {number}" for number in range(CLASSES_OF_A_DRAW)]),
        group=Value("string"),
    )
    groups = [str(group) for group in shapes.groups[index]]
    return Dataset.from_dict({"points": shapes.points[index], "label": labels, "group": groups}, features=features)


def trained_run(way: str, name: str, shapes: Shapes, shots: int, number: int, folder: Path) -> dict[str, Any]:
    """Learn a draw as `hf-any3d train --way WAY` does, and judge the saved model; what was stored is not repeated.

    The way `DEFAULT` is the command without settings.
    """
    about = {"set": name, "way": f"--way {way}", "shots": shots, "draw": number}
    place, division = folder / "trained" / f"{name}-{way}-{shots}-{number}", draw(shapes, shots, number)

    def run() -> dict[str, Any]:
        data = rows_of(shapes, division.train, division.labels)
        data.to_parquet(place / "scans" / "train.parquet")
        arguments = {"dataset_name": "parquet", "data_dir": str(place / "scans"), "output_dir": str(place / "model")}
        with stopwatch() as spent:
            learn_scans(*scans_request(arguments, None if way == DEFAULT else way))
        model: Any = AutoModelForPointCloudClassification.from_pretrained(place / "model").eval()
        with torch.no_grad():
            pieces = torch.from_numpy(shapes.points[division.test]).float().split(32)
            answers = torch.cat([model(points=piece).logits.argmax(dim=1) for piece in pieces]).numpy()
        names = [f"class {label}" for label in division.test_labels]
        right = [model.config.id2label[int(label)] == name for label, name in zip(answers, names, strict=True)]
        found = {**about, "accuracy": float(np.mean(right)), "test_rows": len(right), **spent}
        print(found, flush=True)
        return found

    found = kept_run(place.with_suffix(".json"), about, run)
    return {key: value for key, value in found.items() if key != "settings"}


def trained_runs(ways: Sequence[str], sets: Mapping[str, Shapes], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train all ways on all sets, draw by draw, so that an interrupted study has the same draws of each."""
    runs = []
    for number in range(options.draws):
        for shots in options.trained_shots:
            for name, shapes in sets.items():
                for way in ways:
                    runs.append(trained_run(way, name, shapes, shots, number, options.output_dir))
    return runs


def mean_accuracy(runs: Sequence[dict[str, Any]], **wanted: Any) -> float:
    """Return the mean accuracy of the runs with these values; NaN of none."""
    values = [run["accuracy"] for run in runs if all(run[key] == value for key, value in wanted.items())]
    return float(np.mean(values)) if values else float("nan")


def mean_ranks(runs: Sequence[dict[str, Any]], ways: Sequence[str], shots: int) -> dict[str, float]:
    """Return the mean over the sets of the rank of each way by its mean accuracy; 1 is the best."""
    sets = dict.fromkeys(run["set"] for run in runs)
    ranks = [rankdata([-mean_accuracy(runs, set=name, way=way, shots=shots) for way in ways]) for name in sets]
    return dict(zip(ways, np.mean(ranks, axis=0).tolist(), strict=True))


def report(runs: Sequence[dict[str, Any]]) -> str:
    """Format accuracies in percent by way and number of shots: the three sets, and the mean of the ranks."""
    every = list(dict.fromkeys(run["shots"] for run in runs))
    sets, tables = list(dict.fromkeys(run["set"] for run in runs)), []
    for shots in every:
        own = [run for run in runs if run["shots"] == shots]
        frozen = [way for way in dict.fromkeys(run["way"] for run in own) if not way.startswith("--")]
        ranks = mean_ranks(own, frozen, shots)
        lines = [f"| {shots} a class | {' | '.join(sets)} | mean rank |", "|---" * (len(sets) + 2) + "|"]
        for way in sorted(frozen, key=lambda way: ranks[way]):
            cells = [f"{100 * mean_accuracy(own, set=name, way=way):.1f}" for name in sets]
            lines.append(f"| {way} | {' | '.join(cells)} | {ranks[way]:.1f} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables + trained_tables(runs, sets))


def trained_tables(runs: Sequence[dict[str, Any]], sets: Sequence[str]) -> list[str]:
    """Format what was trained beside the frozen ways on the same draws."""
    lines = ["| way | scans a class | " + " | ".join(sets) + " | CPU s | draws |", "|---" * (len(sets) + 4) + "|"]
    own = [run for run in runs if run["way"].startswith("--")]
    for shots in dict.fromkeys(run["shots"] for run in own):
        draws = {run["draw"] for run in own if run["shots"] == shots}
        same = [run for run in runs if run["shots"] == shots and run["draw"] in draws]
        for way in ("encoder, 8 copies", "descriptors and encoder, 8 copies", *dict.fromkeys(r["way"] for r in own)):
            cells = [f"{100 * mean_accuracy(same, set=name, way=way):.1f}" for name in sets]
            spent = [run["cpu_seconds"] for run in same if run["way"] == way and "cpu_seconds" in run]
            seconds = f"{np.mean(spent):.0f}" if spent else "–"
            lines.append(f"| {way} | {shots} | {' | '.join(cells)} | {seconds} | {len(draws)} |")
    return ["\n".join(lines)] if own else []


def paired_table(runs: Sequence[dict[str, Any]]) -> str:
    """Format the accuracy of the paired ways in percent, and their difference with its 95 % interval over the draws.

    The last line of a set with several numbers of shapes pools its draws.
    """
    lines = ["| set | scans a class | no settings | --way both | difference | draws |", "|---" * 6 + "|"]
    for name in dict.fromkeys(run["set"] for run in runs):
        own = [run for run in runs if run["set"] == name]
        sizes = sorted({run["shots"] for run in own})
        lines_of_set = [[size] for size in sizes]
        if len(sizes) > 1:
            lines_of_set.append(sizes)
        for shots in lines_of_set:
            found = {(run["way"], run["shots"], run["draw"]): run["accuracy"] for run in own if run["shots"] in shots}
            pairs = [key[1:] for key in found if key[0] == f"--way {BOTH}"]
            plain = 100 * np.array([found[f"--way {DEFAULT}", *pair] for pair in pairs])
            both = 100 * np.array([found[f"--way {BOTH}", *pair] for pair in pairs])
            size = " and ".join(map(str, shots))
            cells = f"{plain.mean():.1f} | {both.mean():.1f} | {mean_gain(both - plain)}"
            lines.append(f"| {name} | {size} | {cells} | {len(pairs)} |")
    return "\n".join(lines)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Compute the expected calibration error: accuracy against score in ten bins of the score."""
    score, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((score * 10).astype(int), 9)
    return float(sum(abs(right[bins == b].sum() - score[bins == b].sum()) for b in range(10)) / len(labels))


def area(known: np.ndarray, unknown: np.ndarray) -> float:
    """Compute the area under the ROC curve of scores that are to be higher for unknown shapes."""
    return float(roc_auc_score(np.repeat([0, 1], [len(known), len(unknown)]), np.concatenate([known, unknown])))


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print and store its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kicad", type=Path, help="folder of the electronic parts; without it two sets")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/few_scans"))
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS), help="shapes of a class to learn from")
    parser.add_argument("--views", action="store_true", help="also depth views through DINOv2 of `make donors`")
    parser.add_argument("--trained", nargs="*", default=[], help="values of --way to train")
    parser.add_argument("--trained-shots", nargs="+", type=int, default=list(TRAINED_SHOTS), help="of which sizes")
    parser.add_argument("--paired", action="store_true", help="`--way both` against no settings alone")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of what is trained")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    loaders: dict[str, Callable[[], Shapes]] = {name: SETS[name] for name in ("embedded", "generated")}
    if options.kicad is not None:
        loaders["parts"] = lambda: parts(options.kicad)
    sets = {name: load() for name, load in loaders.items()}
    if options.paired:
        runs = trained_runs((DEFAULT, BOTH), sets, options)
        summary = {"machine": machine(), "runs": runs}
        write_results(options.output_dir, "few_scans_paired", summary, paired_table(runs))
        return
    runs = []
    for name, shapes in sets.items():
        runs += frozen_runs(name, shapes, options)
    runs += trained_runs(options.trained, sets, options)
    write_results(options.output_dir, "few_scans", {"machine": machine(), "runs": runs}, report(runs))


if __name__ == "__main__":
    main()
