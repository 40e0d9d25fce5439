"""3DETR on the rooms of the study of layouts: a detector that does not write, trained as long as the model that does.

    python -m studies.layouts_detector --output-dir outputs/layouts

It finds objects alone. A box is an answer from a score on, which is chosen on the validation rooms by the F1 of
objects at an overlap of 0.25; the test rooms are those of `studies.layouts`, as are the figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import set_seed

from hf_any3d import PointCloudProcessor, load_point_dataset
from hf_any3d.data.boxes import build_changes
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.layers.layouts import Box, Layout
from hf_any3d.training.checkpoints import checkpoint_to_resume
from hf_any3d.training.detection import DetectionTrainer, DetectionTrainingArguments, SceneRows, collate_scenes
from hf_any3d.training.program import build_trainer
from studies.detection import OWN_ENCODER, SIZES
from studies.layouts import RUNS, figures_of
from studies.runs import kept_run, stopwatch

ROOMS: dict[str, Any] = RUNS["third"]["rooms"] | {"validation_rooms": 64}
TRAINING: dict[str, Any] = {
    **{"per_device_train_batch_size": 8, "learning_rate": 1e-3, "weight_decay": 0.01, "max_grad_norm": 1.0},
    **{"eval_strategy": "no", "load_best_model_at_end": False, "save_strategy": "steps", "save_steps": 200},
    **{"save_total_limit": 1, "logging_steps": 50},
}
SCORES = tuple(np.arange(0.05, 0.96, 0.05).round(2).tolist())


def build_processor() -> PointCloudProcessor:
    """Return the processor of the rooms."""
    return PointCloudProcessor(num_points=ROOMS["num_points"], center=False, scale=None, up_axis="z")


@torch.no_grad()
def scored_boxes(model: Detr3DForPointCloudObjectDetection, rows: Dataset) -> list[list[tuple[float, Box]]]:
    """Return the boxes of each room with their scores, the most likely class of each."""
    names, processor = rows.features["box_labels"].feature.names, build_processor()
    found = []
    for room in SceneRows(rows, processor):
        output = model(points=room["points"][None])
        (answer,) = processor.post_process_object_detection(output, threshold=min(SCORES))
        rows_of = zip(answer["scores"].tolist(), answer["labels"].tolist(), answer["boxes"].tolist(), strict=True)
        boxes = []
        for score, label, (x, y, z, length, width, height, heading) in rows_of:
            boxes.append((score, Box(0, names[label], x, y, z, heading, length, width, height)))
        found.append(boxes)
    return found


def judge(found: Sequence[Sequence[tuple[float, Box]]], rows: Dataset, score: float) -> dict[str, float]:
    """Return F1 of boxes with at least a score."""
    kept = [Layout(boxes=tuple(box for own, box in boxes if own >= score)) for boxes in found]
    return figures_of(kept, [Layout.parse(text) for text in rows["layout"]])


def run(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Train, choose the score on the validation rooms, and judge the test rooms."""
    splits = load_point_dataset("rooms_with_layouts", **ROOMS)
    names = splits["train"].features["box_labels"].feature.names
    set_seed(seed)
    labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    model = Detr3DForPointCloudObjectDetection(Detr3DConfig(**SIZES, **OWN_ENCODER, **labels))
    arguments = DetectionTrainingArguments(
        str(folder), seed=seed, max_steps=steps, use_cpu=True, disable_tqdm=True, report_to="none", **TRAINING
    )
    changes = build_changes([f"flip:axis={axis},along_axes=True" for axis in "xy"])
    rows = SceneRows(splits["train"], build_processor(), changes, seed)
    trainer = build_trainer(
        model, arguments, rows, None, build_processor(), DetectionTrainer, data_collator=collate_scenes
    )
    with stopwatch() as spent:
        trainer.train(resume_from_checkpoint=checkpoint_to_resume(folder))
    model.eval()
    chosen = scored_boxes(model, splits["validation"])
    score = max(SCORES, key=lambda score: judge(chosen, splits["validation"], score)["objects_25"])
    figures = judge(scored_boxes(model, splits["test"]), splits["test"], score)
    return {"score": score, **figures, "rooms": len(splits["test"]), "steps": steps, **spent}


def main(words: Sequence[str] | None = None) -> None:
    """Train and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/layouts"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    settings = json.loads(json.dumps({"rooms": ROOMS, "training": TRAINING, "steps": options.steps, **SIZES}))
    for seed in options.seeds:
        how = partial(run, options.output_dir / f"detector-{seed}", seed, options.steps)
        found = kept_run(options.output_dir / f"detector-{seed}.json", settings, how)
        print({name: value for name, value in found.items() if name != "settings"}, flush=True)


if __name__ == "__main__":
    main()
