"""Make the score of how upright a cloud looks, and judge the directions and labels that pipelines find with it.

    python -m studies.up_direction                                    # make the file that comes with the package
    python -m studies.up_direction --judge --kicad FOLDER --objects FILE.npz

The head learns from stretched, tilted and noisy copies of the embedded training shapes, without the example files, and
from generated shapes, each in six directions; three tenths of a batch are generated. Its settings, and the level from
which a direction is sure, were chosen on the embedded test shapes; the electronic parts and the objects of a file
(`names`, `classes`, `points` with y up) are for judging alone. Results: `results/up_direction.md`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import pipeline

from examples import quickstart
from hf_any3d import load_point_dataset
from hf_any3d.modeling.act.up_direction import WEIGHTS, UprightScore, quarter_turns, up_probabilities
from hf_any3d.modeling.layers.boxes import UP_AXES
from hf_any3d.modeling.point_encoders.packaged_encoder import packaged_weights
from hf_any3d.pipelines import default_model
from hf_any3d.tasks.poses import SURE_FROM
from studies.generated_shapes import CLASSES, draw_shape, normalized
from studies.generated_shapes.surfaces import turned

SEED = 21
COPIES, GENERATED = 12, 40
"""Copies of each embedded shape, and generated shapes of each class."""
STRETCH, TILT, NOISE = 0.25, 8.0, 0.01
"""Largest logarithm of an axis's factor, tilt in degrees, and deviation of the noise in radii."""
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY, SMOOTHING = 1500, 256, 2e-3, 0.1, 0.05
GENERATED_SHARE = 0.3
POSES = {"y up": "y", "z up": "z", "x up": "x", "upside down": "-y"}
SYNONYMS = {
    "airplane": "vehicle", "bathtub": "sanitary", "bookshelf": "storage", "bottle": "vessel", "bowl": "vessel",
    "car": "vehicle", "cup": "vessel", "desk": "table", "dresser": "storage", "flower_pot": "plant",
    "keyboard": "device", "laptop": "device", "monitor": "device", "night_stand": "storage", "piano": "device",
    "radio": "device", "sink": "sanitary", "stool": "chair", "toilet": "sanitary", "tv_stand": "storage",
    "vase": "vessel", "wardrobe": "storage",
}  # fmt: skip
"""Classes of other sets, and those of the bundled classifier that they belong to."""


def changed(cloud: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a copy of an upright cloud `(points, 3)` as another object and scan might be, `(1024, 3)`."""
    cloud = turned(cloud, generator.uniform(0, 360)) * np.exp(generator.uniform(-STRETCH, STRETCH, 3))
    for axis in ("x", "z"):
        cloud = turned(cloud, generator.uniform(-TILT, TILT), axis)
    cloud = cloud + generator.normal(size=cloud.shape) * generator.uniform(0, NOISE)
    return normalized(cloud[generator.permutation(len(cloud))[:1024]]).astype(np.float32)


@torch.no_grad()
def features_of(model: UprightScore, clouds: list[np.ndarray], generator: np.random.Generator) -> Tensor:
    """Return features `(clouds, directions, width)` of clouds in all directions, each with any heading."""
    turns = quarter_turns()
    rows = []
    for cloud in clouds:
        chosen = turns[torch.arange(len(turns)), torch.from_numpy(generator.integers(turns.shape[1], size=len(turns)))]
        rows.append(model.encoder(torch.from_numpy(cloud) @ chosen.transpose(1, 2)))
    return torch.stack(rows)


def learn(model: UprightScore, embedded: Tensor, generated: Tensor) -> None:
    """Train the head to prefer the upright direction among the six of a shape."""
    torch.manual_seed(SEED)
    rows = embedded.flatten(0, 1)
    model.mean.copy_(rows.mean(dim=0))
    model.scale.copy_(rows.std(dim=0) + 1e-4)
    for layer in model.head:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    model.head.train()
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    drawn = int(GENERATED_SHARE * BATCH)
    upright = torch.full((BATCH,), UP_AXES.index("y"))
    for _ in range(STEPS):
        known = embedded[torch.randint(len(embedded), (BATCH - drawn,))]
        made = generated[torch.randint(len(generated), (drawn,))]
        scores = model.score(torch.cat([known, made]))  # (batch, directions)
        loss = nn.functional.cross_entropy(scores, upright, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def make(path: Path) -> None:
    """Learn the head, and write it with the statistics of its input."""
    generator = np.random.default_rng(SEED)
    model = UprightScore().eval()
    model.encoder.load_state_dict(packaged_weights())
    rows = quickstart.without_files(load_point_dataset("shapes")["train"])
    upright = list(rows.with_format("numpy")["points"][:])
    copies = [changed(cloud, generator) for _ in range(COPIES) for cloud in upright]
    made = [draw_shape(name, SEED, number) for name in CLASSES for number in range(GENERATED)]
    learn(model, features_of(model, copies, generator), features_of(model, made, generator))
    stored = {
        name: value.contiguous() for name, value in model.state_dict().items() if not name.startswith("encoder.")
    }
    save_file(stored, path, metadata={"made by": "python -m studies.up_direction"})


def judged_sets(options: argparse.Namespace) -> dict[str, tuple[np.ndarray, list[str] | None]]:
    """Return clouds `(objects, points, 3)` with y up, and labels of the bundled classifier, by the name of the set."""
    test = load_point_dataset("shapes")["test"].with_format("numpy")
    names = test.features["label"].names
    sets: dict[str, tuple[np.ndarray, list[str] | None]] = {
        "embedded test shapes": (np.asarray(test["points"][:]), [names[label] for label in test["label"][:]])
    }
    if options.kicad is not None:
        parts = Dataset.from_parquet(str(options.kicad / "test.parquet")).with_format("numpy")
        sets["electronic parts"] = (np.asarray(parts["points"][:], np.float32), None)
    if options.objects is not None:
        stored = np.load(options.objects)
        classes = stored["classes"].astype(str)
        points = stored["points"][..., :3].astype(np.float32)
        sets["objects, all"] = (points, None)
        shared = np.isin(classes, names)
        sets["objects whose class it has"] = (points[shared], list(classes[shared]))
        mapped = np.array([one in SYNONYMS or one in names for one in classes]) & (classes != "airplane")
        sets["objects with a class by SYNONYMS"] = (
            points[mapped],
            [SYNONYMS.get(one, one) for one in classes[mapped]],
        )
    return sets


def in_direction(clouds: np.ndarray, up_axis: str) -> np.ndarray:
    """Turn clouds with y up as files with another direction up have them."""
    turn = quarter_turns()[UP_AXES.index(up_axis), 0].numpy()
    return np.ascontiguousarray(clouds @ turn)  # the inverse of what turns them upright


def judge(options: argparse.Namespace) -> None:
    """Print the shares of found directions, and accuracies of the bundled classifier, for each set and pose."""
    classify = pipeline("point-cloud-classification", model=default_model())
    print("| set | n | up found | sure | of these right | " + " | ".join(POSES) + " | y up, said |")
    print("|---|---|---|---|---|" + "---|" * (len(POSES) + 1))
    for name, (clouds, labels) in judged_sets(options).items():
        shares = torch.cat([up_probabilities(torch.from_numpy(cloud)[None]) for cloud in clouds])
        is_right = shares.argmax(dim=-1) == UP_AXES.index("y")
        is_sure = shares.amax(dim=-1) >= SURE_FROM
        cells = [100 * is_right.float().mean(), 100 * is_sure.float().mean(), 100 * is_right[is_sure].float().mean()]
        row = f"| {name} | {len(clouds)} | " + " | ".join(f"{float(cell):.1f}" for cell in cells)
        for pose, given in [*((pose, None) for pose in POSES), ("y up", "y")] if labels else ():
            turned_clouds = list(in_direction(clouds, POSES[pose]))
            answers = classify(turned_clouds, top_k=1, up_axis=given, unknown=False, progress=False)
            right = np.mean([answer[0]["label"] == label for answer, label in zip(answers, labels, strict=True)])
            row += f" | {100 * right:.1f}"
        print(row + " |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Make the score, or judge it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", action="store_true", help="judge directions and labels, and make nothing")
    parser.add_argument("--kicad", type=Path, help="folder of the electronic parts")
    parser.add_argument("--objects", type=Path, help="file of objects with classes of their own")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.judge:
        judge(options)
    else:
        make(options.output)


if __name__ == "__main__":
    main()
