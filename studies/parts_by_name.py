"""Does a model find parts by words it was not trained with? A small PatchAlign3D, trained from scratch.

    python -m studies.parts_by_name

Each run trains on the embedded dataset of parts without one category, with texts embedded by all-MiniLM-L6-v2, and is
evaluated on the test split: on trained categories with the words of training, on the same objects with words that
training never used, and on the held-out category. Every figure stands beside that of the same model when the vectors
of an object's names are exchanged among each other, the average over all rotations. Every run is stored when it ends.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset

from hf_any3d import PatchAlign3DConfig, PatchAlign3DForZeroShotPointCloudSegmentation, load_point_dataset
from hf_any3d.evaluation.part_names import named_part_iou
from studies.earlier_recipe import ENCODER
from studies.runs import kept_run, machine, stopwatch, use_threads, write_results

HELD_OUT = ("table", "mug", "chair")
"""Category that the run of each seed, from 0, is not trained on."""
OTHER_WORDS = {
    "body": "main part",
    "neck": "narrow top",
    "cap": "lid",
    "seat": "sitting surface",
    "back": "backrest",
    "legs": "feet",
    "foot": "base",
    "pole": "stem",
    "shade": "lampshade",
    "handle": "grip",
    "wings": "airfoils",
    "tail": "fin",
    "top": "surface",
}
"""Words that training never uses for the parts of the dataset."""
MODEL: dict[str, Any] = {
    "num_groups": 64,
    "group_size": 16,
    "patch_widths": [32, 64, 128],
    "patch_pooled_width": 64,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "drop_path_rate": 0.0,
    "projection_dim": 384,
    "parts": {"text_tower": {"name_or_path": ENCODER}},
}
TRAINING: dict[str, Any] = {
    "steps": 300,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "num_points": 512,
}
CONDITIONS = {
    "words": "trained categories, words of training",
    "other_words": "trained categories, other words",
    "held_out": "category that training lacks",
}


class Parts:
    """The dataset of parts, with its words.

    Args:
        model: Embeds the words.
    """

    def __init__(self, model: PatchAlign3DForZeroShotPointCloudSegmentation):
        self.train = load_point_dataset("parts", split="train")
        self.test = load_point_dataset("parts", split="test")
        features = self.train.features
        self.categories: list[str] = features["label"].names
        # "bottle neck" is the neck of a bottle.
        self.words = [name.split(" ", 1)[1] for name in features["labels"].feature.names]
        self.parts_of = {
            category: [n for n, name in enumerate(features["labels"].feature.names) if name.startswith(f"{category} ")]
            for category in self.categories
        }
        self.known = list(dict.fromkeys(self.words))
        self.row_of = np.array([self.known.index(word) for word in self.words])
        self.vectors = model.encode_labels(self.known)  # (words, width)
        self.other_vectors = model.encode_labels([OTHER_WORDS[word] for word in self.known])

    def rows_of(self, split: Dataset, categories: list[str]) -> np.ndarray:
        """Return the numbers of rows of some categories."""
        return np.flatnonzero(np.isin(np.array(split["label"]), [self.categories.index(name) for name in categories]))


def normalized(points: np.ndarray) -> np.ndarray:
    """Move clouds `(…, points, 3)` into the unit sphere."""
    points = points - points.mean(axis=-2, keepdims=True)
    return points / np.linalg.norm(points, axis=-1).max(axis=-1)[..., None, None]


def train(model: PatchAlign3DForZeroShotPointCloudSegmentation, data: Parts, seed: int, held_out: str) -> float:
    """Train all weights on the other categories; returns the mean loss of the last 20 steps."""
    rows = data.rows_of(data.train, [name for name in data.categories if name != held_out])
    split = data.train.with_format("numpy")
    points = normalized(np.stack([split[int(row)]["points"] for row in rows]))
    labels = data.row_of[np.stack([split[int(row)]["labels"] for row in rows])]
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=TRAINING["learning_rate"], weight_decay=TRAINING["weight_decay"]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TRAINING["learning_rate"], TRAINING["steps"])
    model.train()
    losses = []
    for _ in range(TRAINING["steps"]):
        clouds = generator.choice(len(rows), TRAINING["batch_size"], replace=False)[:, None]
        kept = generator.choice(points.shape[1], TRAINING["num_points"], replace=False)
        output = model(
            torch.from_numpy(points[clouds, kept]),
            text_embeds=data.vectors,
            labels=torch.from_numpy(labels[clouds, kept]),
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(output.loss.item())
    model.eval()
    return float(np.mean(losses[-20:]))


@torch.no_grad()
def evaluate(
    model: PatchAlign3DForZeroShotPointCloudSegmentation, data: Parts, categories: list[str], vectors: torch.Tensor
) -> dict[str, float]:
    """Return the mean IoU of parts, and that with the names' vectors exchanged.

    Args:
        model: The trained model.
        data: The dataset.
        categories: Categories whose test rows count.
        vectors: `(words, width)`, vectors of `data.known`.
    """
    split = data.test.with_format("numpy")
    right, exchanged = [], []
    for row in map(int, data.rows_of(data.test, categories)):
        parts = data.parts_of[data.categories[int(split[row]["label"])]]
        points = torch.from_numpy(normalized(split[row]["points"][None]))
        scores = model(points, text_embeds=vectors[data.row_of[parts]]).logits[0]  # (points, parts)
        references = np.searchsorted(parts, split[row]["labels"])
        for shift in range(len(parts)):
            predictions = scores.roll(shift, dims=1).argmax(dim=1).numpy()
            iou = named_part_iou(predictions, references, len(parts), "shapenetpart")
            (exchanged if shift else right).append(iou)
    return {"iou": float(np.mean(right)), "exchanged": float(np.mean(exchanged))}


def run_seed(seed: int) -> dict[str, Any]:
    """Train and evaluate with one seed."""
    held_out = HELD_OUT[seed % len(HELD_OUT)]
    torch.manual_seed(seed)
    model = PatchAlign3DForZeroShotPointCloudSegmentation(PatchAlign3DConfig(**MODEL))
    data = Parts(model)
    with stopwatch() as spent:
        loss = train(model, data, seed, held_out)
        trained = [name for name in data.categories if name != held_out]
        found = {
            "words": evaluate(model, data, trained, data.vectors),
            "other_words": evaluate(model, data, trained, data.other_vectors),
            "held_out": evaluate(model, data, [held_out], data.vectors),
        }
    return {"seed": seed, "category": held_out, "loss": loss, **found, **spent}


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute mean and sample standard deviation over seeds."""
    figures = {}
    for condition in CONDITIONS:
        for name in ("iou", "exchanged"):
            values = [run[condition][name] for run in runs]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            figures[f"{condition}_{name}"] = {"mean": float(np.mean(values)), "std": spread}
    return {"date": date.today().isoformat(), "machine": machine(), "figures": figures, "runs": runs}


def table(summary: dict[str, Any]) -> str:
    """Format the summary as Markdown."""
    runs, figures = summary["runs"], summary["figures"]
    lines = ["| IoU of parts, % | " + " | ".join(f"without {run['category']}" for run in runs) + " | mean ± std |"]
    lines.append("|---" * (len(runs) + 2) + "|")
    for condition, title in CONDITIONS.items():
        for name, ending in (("iou", ""), ("exchanged", "; names exchanged")):
            cells = [f"{100 * run[condition][name]:.1f}" for run in runs]
            mean, std = (100 * figures[f"{condition}_{name}"][key] for key in ("mean", "std"))
            lines.append(f"| {title}{ending} | {' | '.join(cells)} | {mean:.1f} ± {std:.1f} |")
    seconds = [run["cpu_seconds"] for run in runs]
    lines += ["", f"Training and evaluation took {min(seconds):.0f} to {max(seconds):.0f} CPU seconds."]
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output-dir", type=Path, default=Path("outputs/parts_by_name"), help="folder for all results"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="threads of torch; torch's own choice by default")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print and store its table."""
    options = parse(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    settings = {"model": MODEL, "training": TRAINING, "other_words": OTHER_WORDS}
    runs = [
        kept_run(options.output_dir / "runs" / f"{seed}.json", settings, lambda seed=seed: run_seed(seed))
        for seed in options.seeds
    ]
    summary = summarize(runs)
    write_results(options.output_dir, "parts_by_name", summary, table(summary))


if __name__ == "__main__":
    main()
