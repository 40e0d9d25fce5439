"""Train and evaluate a classifier on every fold of a few-shot dataset; reports mean and standard deviation.

    python examples/run_few_shot.py examples/recipes/any2point_clip_modelnet40_fewshot.yaml --way 5 --shot 10 \
        --data_dir data --output_dir outputs/few_shot/clip_5w10s
    python examples/run_few_shot.py recipe.yaml --way 5 --shot 10 --draw --output_dir outputs/few_shot/drawn

The folds are those of the dataset, or, with --draw, rows of any labeled dataset drawn by a seed. Further arguments go
to the training program. An interrupted series resumes when it is started again.
"""

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import runpy
from pathlib import Path
from typing import Any

from hf_any3d.training.folds import SUMMARY, run_folds
from hf_any3d.training.program import run_program


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run all folds and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", help="settings file of the training program")
    parser.add_argument("--way", type=int, required=True, help="number of classes")
    parser.add_argument("--shot", type=int, required=True, help="training clouds per class")
    parser.add_argument("--folds", type=int, default=10, help="number of folds")
    parser.add_argument("--draw", action="store_true", help="draw rows by a seed instead of the dataset's own folds")
    parser.add_argument("--output_dir", required=True, help="for a folder per fold and the summary")
    parser.add_argument("--program", type=Path, default=Path(__file__).with_name("run_point_cloud_classification.py"))
    # An abbreviation could be meant for the training program.
    parser.allow_abbrev = False
    arguments, words = parser.parse_known_args(argv)
    option = "--few_shot" if arguments.draw else "--dataset_options"
    if option in words:
        parser.error(f"{option} comes from --way and --shot; put further options into {arguments.recipe}")

    def fold_words(fold: int) -> list[str]:
        return [option, json.dumps({"way": arguments.way, "shot": arguments.shot, "fold": fold})]

    result = run_folds(
        runpy.run_path(str(arguments.program))["main"],
        [arguments.recipe, *words],
        arguments.output_dir,
        arguments.folds,
        fold_words,
    )
    for split, metrics in result["summary"].items():
        shares = [
            f"{name} {100 * v['mean']:.1f} ± {100 * v['std']:.1f} %" for name, v in metrics.items() if name != "loss"
        ]
        print(f"{split}, {arguments.folds} folds: {', '.join(shares)}")
    print(f"All figures: {Path(arguments.output_dir) / SUMMARY}")
    return result


if __name__ == "__main__":
    run_program(main)
