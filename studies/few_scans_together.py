"""Trained wrap and frozen features together: on which form and weight the choice classes decide, and what they bring.

    python -m studies.few_scans_together

Part of the study in `results/few_scans.md`, whose second plan it follows. Wraps are trained once and kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax

from hf_any3d import AutoModelForPointCloudClassification, PointFeaturesConfig
from hf_any3d.modeling.point_features.modeling_point_features import make_copies
from hf_any3d.training.few_scans.linear_head import draw_folds, fit_head, held_out_logits
from hf_any3d.training.few_scans.plan import Plan
from studies.few_scans import stored_features
from studies.few_scans_draws import CLASSES_OF_A_DRAW, SETS, Draw, Shapes, draw
from studies.few_scans_report import COPIES, calibration_error
from studies.few_scans_trained import trained_run
from studies.runs import write_results

WEIGHTS = (0.25, 0.5, 0.75)
"""Weights of the wrap's log-probabilities to choose from."""
CHOICE = [("choice", shots, number) for shots in (5, 10) for number in (0, 1)]
"""Runs that decide."""
JUDGED = [(name, shots, 0) for name in ("generated", "embedded") for shots in (5, 10)]
FURTHER = [(name, 5, number) for name in ("generated", "embedded") for number in (1, 2, 3, 4)]


@torch.no_grad()
def of_wrap(folder: Path, points: np.ndarray, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute pooled features `(shapes, width)` and log-probabilities `(shapes, classes)`, means over copies."""
    model: Any = AutoModelForPointCloudClassification.from_pretrained(folder).eval()
    config = PointFeaturesConfig(features=["descriptors"], copies=copies)
    pooled, scores = [], []
    for part in torch.from_numpy(points).float().split(16):
        found = model.base_model(make_copies(part, config).flatten(0, 1), return_dict=True).pooler_output
        scores.append(model.classifier(found).log_softmax(-1).unflatten(0, (-1, copies)).mean(1))
        pooled.append(found.unflatten(0, (-1, copies)).mean(1))
    return torch.cat(pooled).numpy(), torch.cat(scores).numpy()


def stored_wrap(run: tuple[str, int, int], rows: np.ndarray, shapes: Shapes, copies: int, folder: Path) -> Any:
    """Read what the wrap of a run tells of rows of a set, computed on the first call."""
    name = "{}-recipe-{}-{}".format(*run)
    path = folder / "trained" / f"{name}-{copies}.npz"
    if not path.is_file():
        trained_run("recipe", *run, folder)
        pooled, scores = of_wrap(folder / "trained" / name, shapes.points[rows], copies)
        np.savez(path, pooled=pooled, scores=scores)
    return np.load(path)


def judge(scores: np.ndarray, division: Draw) -> dict[str, float]:
    """Compute accuracy and calibration error of log-probabilities of test shapes."""
    right = scores.argmax(axis=1) == division.test_labels
    error = calibration_error(np.exp(log_softmax(scores, axis=1)), division.test_labels)
    return {"accuracy": float(right.mean()), "calibration_error": error}


def compare(run: tuple[str, int, int], shapes: Shapes, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Learn a draw with frozen features, with the wrap, and with both in each form."""
    name, shots, number = run
    division, count = draw(shapes, shots, number), len(shapes.points)
    rows = np.concatenate([division.train, division.test])
    learned = len(division.train)
    frozen = np.concatenate(
        [
            stored_features(name, source, COPIES, shapes.points, options, name)["features"]
            for source in ("descriptors", "packaged")
        ],
        axis=1,
    )
    assert len(frozen) == count
    strength = Plan().strength
    head = fit_head(frozen[division.train], division.labels, CLASSES_OF_A_DRAW, strength)
    of_frozen = log_softmax(head.logits(frozen[division.test]), axis=1)
    found = {"frozen features": judge(of_frozen, division)}
    folds = draw_folds(division.labels, shapes.groups[division.train], 10)
    for copies in options.copies:
        wrap = stored_wrap(run, rows, shapes, copies, options.output_dir)
        of_wrapped, title = wrap["scores"][learned:], f"{copies} copies" if copies > 1 else "no copies"
        found[f"wrap, {title}"] = judge(of_wrapped, division)
        for weight in WEIGHTS:
            mixed = weight * of_wrapped + (1 - weight) * of_frozen
            found[f"averaged, {weight:g}, {title}"] = judge(mixed, division)
        refitted = fit_head(wrap["pooled"][:learned], division.labels, CLASSES_OF_A_DRAW, strength)
        for weight in WEIGHTS:
            mixed = weight * refitted.logits(wrap["pooled"][learned:]) + (1 - weight) * of_frozen
            found[f"averaged, {weight:g}, linear head on the wrap, {title}"] = judge(mixed, division)
        joined = np.concatenate([frozen[rows], wrap["pooled"]], axis=1)
        head = fit_head(joined[:learned], division.labels, CLASSES_OF_A_DRAW, strength)
        held_out = held_out_logits(joined[:learned], division.labels, folds, CLASSES_OF_A_DRAW, strength)
        flattered = float((held_out.argmax(axis=1) == division.labels).mean())
        found[f"joined, {title}"] = {**judge(head.logits(joined[learned:]), division), "estimated": flattered}
    return [{"set": name, "shots": shots, "draw": number, "arm": arm, **one} for arm, one in found.items()]


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Format mean accuracies by way, set and number of shots."""
    cells = list(dict.fromkeys((run["set"], run["shots"]) for run in runs))
    lines = ["| way | " + " | ".join(f"{name}, k = {shots}" for name, shots in cells) + " |"]
    lines.append("|---|" + "---|" * len(cells))
    for arm in dict.fromkeys(run["arm"] for run in runs):
        means = []
        for name, shots in cells:
            own = [run["accuracy"] for run in runs if (run["set"], run["shots"], run["arm"]) == (name, shots, arm)]
            means.append(f"{100 * np.mean(own):.1f}" if own else "–")
        lines.append(f"| {arm} | {' | '.join(means)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison; print and store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/few_scans"))
    parser.add_argument("--copies", nargs="+", type=int, default=[1, COPIES], help="copies that the wrap sees")
    parser.add_argument("--further", action="store_true", help="also the other draws of five shapes a class")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sets = {name: make() for name, make in SETS.items()}
    runs = []
    for run in [*CHOICE, *JUDGED, *(FURTHER if options.further else [])]:
        runs += compare(run, sets[run[0]], options)
    write_results(options.output_dir, "few_scans_together", {"runs": runs}, table(runs))


if __name__ == "__main__":
    main()
