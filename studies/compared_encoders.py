"""Compare a point encoder with the packaged one on few scans, each used as `hf-any3d train` uses the packaged one.

    python -m studies.compared_encoders STATE --kicad FOLDER    # STATE of a run of studies.packaged_encoder

Features are means over eight copies, in a metric that is made for each encoder of its own features, of generated
classes and of solids, so that all classes of the comparison are new to it. Results: `results/packaged_encoder.md`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from hf_any3d import ActModel
from hf_any3d.training.few_scans.linear_head import fit_head
from studies.few_scans import COPIES, stored_features
from studies.few_scans_draws import CLASSES_OF_A_DRAW, SETS, Shapes, draw, parts
from studies.packaged_encoder import learned_encoder
from studies.packaged_metric import changed_solids, make_metric
from studies.runs import mean_gain

SHOTS = (2, 10)
DRAWS = 60
OF_METRIC, JUDGED = ("choice", "solids"), ("embedded", "parts")


def accuracies(
    encoder: ActModel | None, sets: dict[str, Shapes], folder: Path, draws: int
) -> dict[tuple[str, int], np.ndarray]:
    """Return the accuracy in percent `(draws,)` by judged set and shapes of a class; None is the packaged encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    features = {
        name: stored_features(name, shapes, "encoder", COPIES, folder, encoder).astype(np.float64)
        for name, shapes in sets.items()
    }
    metric = make_metric([(features[name], sets[name].labels) for name in OF_METRIC])
    found = {}
    for name in JUDGED:
        for shots in SHOTS:
            right = []
            for number in range(draws):
                division = draw(sets[name], shots, number)
                head = fit_head(features[name][division.train], division.labels, CLASSES_OF_A_DRAW, 1.0, metric)
                answers = head.logits(features[name][division.test]).argmax(axis=1)
                right.append(100 * np.mean(answers == division.test_labels))
            found[name, shots] = np.array(right)
    return found


def table(packaged: dict[tuple[str, int], np.ndarray], other: dict[tuple[str, int], np.ndarray]) -> str:
    """Format the accuracies of two encoders, and their difference with its 95 % interval over paired draws."""
    lines = ["| set | scans a class | packaged | this one | difference |", "|---" * 5 + "|"]
    for (name, shots), right in other.items():
        before = packaged[name, shots]
        cells = f"{before.mean():.1f} | {right.mean():.1f} | {mean_gain(right - before)}"
        lines.append(f"| {name} | {shots} | {cells} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path, help="file of a run of studies.packaged_encoder")
    parser.add_argument("--kicad", type=Path, required=True, help="folder of the electronic parts")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/compared_encoders"))
    parser.add_argument("--draws", type=int, default=DRAWS, help="paired draws of each set and size")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sets = {"choice": SETS["choice"](), "solids": changed_solids()}
    sets |= {"embedded": SETS["embedded"](), "parts": parts(options.kicad)}
    step = torch.load(options.state, weights_only=True)["step"]
    folder, draws = options.output_dir, options.draws
    packaged = accuracies(None, sets, folder / "packaged", draws)
    other = accuracies(learned_encoder(options.state), sets, folder / f"{options.state.stem}-{step}", draws)
    print(table(packaged, other))


if __name__ == "__main__":
    main()
