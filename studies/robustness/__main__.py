"""Write the robustness report of a classifier: a table, a plot, and a section of its card.

    python -m studies.robustness MODEL --dataset scanobjectnn --data-dir DATA
    python -m studies.robustness MODEL --dataset parquet --options '{"data_files": {"test": "data.parquet"}}' --cpu

Fifteen corruptions at five severities, a half to a sixteenth of the points, rotations, and no colors: the split is
evaluated more than 80 times. An interrupted report resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_any3d.training.evaluated_rows import evaluated_rows, evaluation_arguments, first_rows, with_normals_of_model
from hf_any3d.training.saved_models import EvaluationSettings, evaluate_classifier
from hf_any3d.training.sources import find_data
from studies.robustness.report import evaluate_robustness, robustness_table, write_robustness


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate, and write robustness.json, .md and .png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or Hub name of a classifier")
    parser.add_argument("data", nargs="?", help="folder or file of labeled clouds")
    parser.add_argument("--dataset", help="dataset in the built-in catalog or on the Hub")
    parser.add_argument("--data-dir", help="folder of its files")
    parser.add_argument("--options", help="JSON object with options of the dataset")
    parser.add_argument("--split", help="by default test, or the only split of a folder or file")
    parser.add_argument("--max-samples", type=int, help="evaluate on at most this many clouds")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true", help="run on the CPU only")
    parser.add_argument("--output-dir", type=Path, help="by default the model's directory, or outputs/robustness")
    asked = parser.parse_args(arguments)
    given, file = find_data(asked.data, asked.dataset)[:2]
    if asked.data_dir is not None:
        given["data_dir"] = asked.data_dir
    if asked.options is not None:
        given["dataset_options"] = asked.options
    data, protocol = evaluation_arguments(asked.model, given, file)
    split, rows, _ = evaluated_rows("predict", data, protocol, asked.split, None)
    rows = with_normals_of_model(first_rows(rows, asked.max_samples), asked.model, data)
    settings = EvaluationSettings(data, protocol, asked.batch_size, asked.seed, asked.cpu)
    metrics, _ = evaluate_classifier(asked.model, rows, split, settings)
    folder = asked.output_dir
    if folder is None:
        folder = Path("outputs/robustness")
        if Path(asked.model).is_dir():
            # Beside the card, which gets a section.
            folder = Path(asked.model)
    report = evaluate_robustness(asked.model, rows, split, settings, metrics[split], folder)
    written, remarks = write_robustness(report, folder)
    print(robustness_table(report))
    print("written:", ", ".join(map(str, written)))
    for remark in remarks:
        print(remark)


if __name__ == "__main__":
    main()
