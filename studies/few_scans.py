"""A few labeled scans of ten classes that no feature has seen: which way answers best, at what cost, how sure it is.

    python -m studies.few_scans                   # heads on frozen features, in minutes
    python -m studies.few_scans --trained recipe pointnet2 --draws 0 1    # trained models, on the first draws

The plan, chosen before the first result, and the results: `results/few_scans.md`. Encoders among the arms are those of
`packaged_encoder.py`. Features and runs are stored and not repeated.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from transformers import set_seed

from examples import train_default_model
from hf_any3d import (
    ActConfig,
    ActForPointCloudClassification,
    ActModel,
    PointFeaturesConfig,
    PointFeaturesForPointCloudClassification,
    PointFeaturesModel,
)
from hf_any3d.pipelines import default_model
from hf_any3d.training.few_scans.linear_head import draw_folds, fit_head, fit_temperature, held_out_logits
from hf_any3d.training.few_scans.no_class import KINDS, draw_things
from hf_any3d.training.few_scans.plan import Plan
from hf_any3d.training.few_scans.training import CALIBRATED_FROM
from studies.few_scans_draws import CLASSES_OF_A_DRAW, SEED, SETS, Shapes, draw, nothing_known
from studies.few_scans_report import COPIES, SHOTS, calibration_error, report
from studies.few_scans_trained import TRAINED, trained_runs
from studies.generated_shapes.families import OTHERS
from studies.packaged_encoder import embedded_shapes, learned_encoder
from studies.runs import kept_run, machine, stopwatch, write_results

DRAWS = 5
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Inverse strengths of the L2 penalty to choose from, as scikit-learn names them."""
SHIPPED = "descriptors and packaged encoder"
"""Arm of `hf-any3d train`."""
OWN_KIND = {"noise": "noise", "plane": "sheet", "bar": "bar", "room": "room"}
"""Kind of the things that are judged -> kind of the package's things that are like them."""


def without_unseen(folder: Path) -> ActModel:
    """Open the encoder of the packaged recipe on the eight embedded classes that are not compared; train it once."""
    path = folder / "packaged_on_eight"
    if not path.is_dir():
        rows = embedded_shapes(unseen=False)
        names = sorted({rows.features["label"].names[label] for label in rows["label"]})
        numbers = [names.index(rows.features["label"].names[label]) for label in rows["label"]]
        rows = rows.remove_columns("label").add_column("label", numbers).cast_column("label", ClassLabel(names=names))
        options = argparse.Namespace(start=None, max_steps=-1, output_dir=folder / "trainer")
        candidate = train_default_model.CANDIDATES["act-turned"]
        with stopwatch() as spent:
            model: Any = train_default_model.train(candidate, names, rows, options).model
        print(f"the packaged recipe on {len(rows)} shapes of eight classes: {spent['cpu_seconds']:.0f} CPU seconds")
        model.save_pretrained(path)
    return ActForPointCloudClassification.from_pretrained(path).act


def random_encoder() -> ActModel:
    """Build an encoder with random weights, a control."""
    set_seed(SEED)
    return ActModel(ActConfig(**train_default_model.ACT))


def encoder_of(name: str, set_name: str, options: argparse.Namespace) -> ActModel:
    """Open the encoder of an arm, for a set whose labels it has not seen."""
    if name == "random":
        return random_encoder()
    if name == "learned":
        return learned_encoder(options.encoder_dir)
    if set_name == "embedded":
        return without_unseen(options.output_dir)
    return ActForPointCloudClassification.from_pretrained(default_model()).act


ENCODERS = ("packaged", "learned", "random")


def extract(points: np.ndarray, source: str, copies: int, encoder: ActModel | None) -> tuple[np.ndarray, float]:
    """Compute features, and the CPU milliseconds of a shape."""
    settings: dict[str, Any] = {"copies": copies}
    if encoder is None:
        model = PointFeaturesModel(PointFeaturesConfig(features=["descriptors"], **settings))
    else:
        config = PointFeaturesConfig(features=["encoder"], encoder_config=encoder.config, **settings)
        model = PointFeaturesModel(config, parts={"encoder": encoder})
    with stopwatch() as spent, torch.no_grad():
        parts = torch.from_numpy(points).float().split(16)
        features = torch.cat([model.eval()(points=part, return_dict=True).pooler_output for part in parts])
    return features.numpy(), 1000 * spent["cpu_seconds"] / len(points)


def stored_features(
    set_name: str, source: str, copies: int, points: np.ndarray, options: argparse.Namespace, owner: str
) -> dict[str, Any]:
    """Read the features of shapes, computed on the first call; `owner` is the set that the encoder has not seen."""
    path = options.output_dir / f"{set_name}-{owner}-{source}-{copies}.npz"
    if not path.is_file():
        encoder = None if source == "descriptors" else encoder_of(source, owner, options)
        features, milliseconds = extract(points, source, copies, encoder)
        np.savez(path, features=features, milliseconds=milliseconds)
    return dict(np.load(path))


def sources_of(encoders: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the arms with their sets of features."""
    alone = {f"{name} encoder": (name,) for name in encoders}
    both = {f"descriptors and {name} encoder": ("descriptors", name) for name in encoders if name != "random"}
    return {"descriptors": ("descriptors",), **alone, **both}


class Head:
    """Logistic regression on standardized features."""

    def __init__(self, strength: float):
        self.strength = strength

    def fit(self, features: np.ndarray, labels: np.ndarray) -> Head:
        """Fit to features `(rows, width)` and labels `(rows,)`."""
        self.mean, self.scale = features.mean(axis=0), features.std(axis=0) + 1e-6
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = LogisticRegression(C=self.strength, max_iter=300).fit(self.standard(features), labels)
        return self

    def standard(self, features: np.ndarray) -> np.ndarray:
        """Standardize."""
        return (features - self.mean) / self.scale

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return `(rows, classes)`."""
        return self.model.predict_proba(self.standard(features))


class Forest(Head):
    """A random forest on the features as they are."""

    def fit(self, features: np.ndarray, labels: np.ndarray) -> Forest:
        """Fit to features `(rows, width)` and labels `(rows,)`."""
        self.mean, self.scale = features.mean(axis=0), features.std(axis=0) + 1e-6
        forest = RandomForestClassifier(500, random_state=SEED, n_jobs=1)
        self.model: Any = forest.fit(self.standard(features), labels)
        return self


def estimated(build: Callable[[], Head], features: np.ndarray, labels: np.ndarray, shots: int) -> tuple[float, float]:
    """Estimate accuracy and calibration error by at most five stratified folds; rows come class by class."""
    folds = min(5, shots)
    fold = np.concatenate([np.arange((labels == label).sum()) % folds for label in np.unique(labels)])
    probabilities = np.empty((len(labels), labels.max() + 1))
    for number in range(folds):
        out = fold == number
        probabilities[out] = build().fit(features[~out], labels[~out]).probabilities(features[out])
    return float((probabilities.argmax(axis=1) == labels).mean()), calibration_error(probabilities, labels)


def evaluate_head(
    build: Callable[[], Head], features: np.ndarray, shapes: Shapes, shots: int, number: int
) -> dict[str, float]:
    """Fit one head and compute its accuracy, and what it estimates by itself."""
    division = draw(shapes, shots, number)
    train = features[division.train]
    with stopwatch() as spent:
        head = build().fit(train, division.labels)
    probabilities = head.probabilities(features[division.test])
    figures = {
        "accuracy": float((probabilities.argmax(axis=1) == division.test_labels).mean()),
        "calibration_error": calibration_error(probabilities, division.test_labels),
        "head_seconds": spent["cpu_seconds"],
        "train_rows": len(train),
        "test_rows": len(division.test),
    }
    if shots > 1 and not isinstance(head, Forest):
        figures["estimated"], figures["estimated_calibration_error"] = estimated(build, train, division.labels, shots)
    return figures


def evaluate_shipped(
    features: np.ndarray, nothing: np.ndarray, things: np.ndarray, shapes: Shapes, shots: int, number: int
) -> dict[str, float]:
    """Learn a draw as `hf-any3d train` does, and compute what the model tells of test shapes and of unknown things.

    Args:
        features: Of all shapes.
        nothing: Of `nothing_known`.
        things: Of `draw_things`.
        shapes: The set.
        shots: Shapes of a class to learn from.
        number: Number of the draw.

    Returns:
        Accuracy and calibration error; from two shapes a class on, for each kind of unknown things the area under the
        ROC curve of the unknown score with all things of no class, without those of its own kind, and without any,
        and the shares of scores above 0.5 and without a label.
    """
    division = draw(shapes, shots, number)
    train, labels = features[division.train], division.labels
    strength = Plan().strength
    head = fit_head(train, labels, CLASSES_OF_A_DRAW, strength)
    groups = shapes.groups[division.train]
    held_out = held_out_logits(train, labels, draw_folds(labels, groups, 10), CLASSES_OF_A_DRAW, strength)
    before = calibration_error(softmax(head.logits(features[division.test]), axis=1), division.test_labels)
    if len(labels) >= CALIBRATED_FROM:
        temperature = fit_temperature(held_out, labels)
        head, held_out = head.cooled(temperature), held_out / temperature
    probabilities = softmax(head.logits(features[division.test]), axis=1)
    figures = {
        "accuracy": float((probabilities.argmax(axis=1) == division.test_labels).mean()),
        "calibration_error": calibration_error(probabilities, division.test_labels),
        "calibration_error_before": before,
        "over_confidence": float((probabilities.max(1) - (probabilities.argmax(1) == division.test_labels)).mean()),
        "train_rows": len(train),
        "test_rows": len(division.test),
        "head_seconds": 0.0,
    }
    if shots == 1:
        return figures
    figures["estimated"] = float((held_out.argmax(axis=1) == labels).mean())
    kinds = np.arange(len(things)) % len(KINDS)
    model = PointFeaturesForPointCloudClassification(PointFeaturesConfig(num_labels=CLASSES_OF_A_DRAW))

    def standard(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(head.standardize(rows)).float()

    def scores_of(rows: np.ndarray) -> np.ndarray:
        found = model.score_unknown(standard(rows), torch.from_numpy(head.logits(rows)).float())
        assert found is not None
        return found.numpy()

    unlike = {"other classes": features[division.strangers], **dict(zip(OTHERS, np.split(nothing, 4), strict=True))}
    for kind, rows in unlike.items():
        banks = {"": things, ", without a bank": None}
        if kind in OWN_KIND:
            banks[", without its kind"] = things[kinds != list(KINDS).index(OWN_KIND[kind])]
        for name, bank in banks.items():
            rest = [] if bank is None else [standard(bank)]
            model.fit_unknown_score(standard(train), torch.from_numpy(held_out).float(), groups.tolist(), *rest)
            known, found = scores_of(features[division.test]), scores_of(rows)
            figures[f"{kind}{name}"] = area(known, found)
            if not name:
                for which, values in (("known", known), (kind, found)):
                    figures[f"{which}, flagged"] = float((values > 0.5).mean())
    return figures


def area(known: np.ndarray, unknown: np.ndarray) -> float:
    """Compute the area under the ROC curve of scores that are to be higher for unknown shapes."""
    return float(roc_auc_score(np.repeat([0, 1], [len(known), len(unknown)]), np.concatenate([known, unknown])))


def choose_strengths(features: dict[str, np.ndarray], shapes: Shapes) -> dict[int, float]:
    """Choose the penalty's strength for each number of shots, for the mean accuracy of all arms."""
    chosen = {}
    for shots in SHOTS:
        means = []
        for strength in STRENGTHS:
            right = []
            for rows, number in product(features.values(), range(DRAWS)):
                division = draw(shapes, shots, number)
                head = Head(strength).fit(rows[division.train], division.labels)
                answers = head.probabilities(rows[division.test]).argmax(axis=1)
                right.append((answers == division.test_labels).mean())
            means.append(np.mean(right))
        chosen[shots] = STRENGTHS[int(np.argmax(means))]
        told = ", ".join(f"{s:g}: {100 * mean:.1f}" for s, mean in zip(STRENGTHS, means, strict=True))
        print(f"strength for {shots} shots: {chosen[shots]:g} ({told})", flush=True)
    return chosen


def frozen_runs(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Evaluate all heads on frozen features; returns the runs, and what they have in common."""
    sets, nothing = {name: SETS[name]() for name in (*options.sets, "choice")}, nothing_known()
    things = draw_things()
    sources = sources_of(options.encoders)

    def of_arm(set_name: str, arm: str, copies: int, owner: str, points: np.ndarray) -> tuple[np.ndarray, float]:
        parts = [stored_features(set_name, source, copies, points, options, owner) for source in sources[arm]]
        milliseconds = sum(float(part["milliseconds"]) for part in parts)
        return np.concatenate([part["features"] for part in parts], axis=1), milliseconds

    points = sets["choice"].points
    of_choice = {arm: of_arm("choice", arm, 1, "choice", points)[0] for arm in sources if "random" not in arm}
    settings = {"arms": sorted(of_choice), "strengths": list(STRENGTHS), "steps": options.encoder_steps}
    strengths = kept_run(
        options.output_dir / "strengths.json",
        settings,
        lambda: {"chosen": choose_strengths(of_choice, sets["choice"])},
    )["chosen"]
    strengths = {int(shots): strength for shots, strength in strengths.items()}
    runs = []
    for set_name, arm, copies in product(options.sets, sources, (1, COPIES)):
        if "random" in arm and copies > 1:
            continue
        rows, milliseconds = of_arm(set_name, arm, copies, set_name, sets[set_name].points)
        is_shipped = arm == SHIPPED and copies == COPIES
        if is_shipped:
            strange, _ = of_arm("nothing", arm, copies, set_name, nothing)
            # As they are stored: without copies.
            bank, _ = of_arm("things", arm, 1, set_name, things)
        for shots, number in product(SHOTS, range(DRAWS)):
            heads: dict[str, Callable[[], Head]] = {"logistic": lambda shots=shots: Head(strengths[shots])}
            if arm == "descriptors":
                heads["forest"] = lambda: Forest(0)
            for head, build in heads.items():
                figures = evaluate_head(build, rows, sets[set_name], shots, number)
                about = {"set": set_name, "arm": arm, "head": head, "copies": copies, "shots": shots, "draw": number}
                cost = figures["head_seconds"] + figures["train_rows"] * milliseconds / 1000
                runs.append({**about, **figures, "cpu_seconds": cost})
            if is_shipped:
                figures = evaluate_shipped(rows, strange, bank, sets[set_name], shots, number)
                about = {"set": set_name, "arm": arm, "head": "shipped", "copies": copies}
                runs.append({**about, "shots": shots, "draw": number, **figures, "cpu_seconds": float("nan")})
    return runs, {"strengths": {str(shots): strength for shots, strength in strengths.items()}}


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print and store its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/few_scans"))
    parser.add_argument("--encoder-dir", type=Path, default=Path("outputs/packaged_encoder"))
    parser.add_argument("--encoders", nargs="*", default=list(ENCODERS), choices=ENCODERS, help="frozen encoders")
    parser.add_argument("--trained", nargs="*", default=[], choices=TRAINED, help="models to train")
    parser.add_argument("--sets", nargs="+", default=["embedded", "generated"], choices=["embedded", "generated"])
    parser.add_argument("--draws", nargs="+", type=int, default=[0], help="draws to train on")
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS), help="shapes of a class to train on")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    learned = "learned" in options.encoders
    options.encoder_steps = (
        torch.load(options.encoder_dir / "learning.pt", weights_only=True)["step"] if learned else None
    )
    trained = list(trained_runs(options))
    runs, about = frozen_runs(options)
    runs += trained
    about |= {"machine": machine(), "encoder_steps": options.encoder_steps}
    write_results(options.output_dir, "few_scans", {**about, "runs": runs}, report(runs))


if __name__ == "__main__":
    main()
