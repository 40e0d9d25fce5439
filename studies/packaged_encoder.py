"""Learn the packaged point encoder from generated shapes, with real transformers as teachers or without.

    python -m studies.packaged_encoder --kicad FOLDER                          # learn and judge all arms
    python -m studies.packaged_encoder --arms labels+views --steps 9000        # go on with one of them
    python -m studies.packaged_encoder --arms labels+views --total 9000        # the rate falls to 0 at the end
    python -m studies.packaged_encoder --arms labels+views --start hf_any3d/default_model --first 7000 --total 9000

The ten embedded classes `UNSEEN` of `few_scans_draws.py`, every second generated class and all electronic parts stay
unseen. Learning can be stopped and continued: one file has the weights of encoder, decoder and heads, the optimizer's
state and the step, and what is learned then is the same bit for bit. A second process draws the shapes. The plan,
chosen before the first result, and the results: `results/packaged_encoder.md`; `compared_encoders.py` judges a run as
`hf-any3d train` uses the encoder.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Array2D, ClassLabel, Dataset, Features
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModel, set_seed

from examples import run_act_autoencoder
from hf_any3d import ActAutoencoder, ActConfig, ActForPointCloudClassification, ActModel
from hf_any3d.modeling.act.masking import random_mask, split_by_mask
from hf_any3d.modeling.point_encoders.point_transformer import PointBlocks
from hf_any3d.modeling.point_features.depth_views import depth_views
from hf_any3d.modeling.point_ops import chamfer_distance, gather_points
from hf_any3d.pipelines import default_model
from hf_any3d.utils.atomic_files import atomic_write
from studies.donors import donors_folder
from studies.few_scans_draws import Shapes, draw, embedded_shapes, parts
from studies.generated_shapes import CLASSES, NONE, draw_shape, normalized
from studies.generated_shapes.families import draw_solid, scanned
from studies.generated_shapes.surfaces import Draw, turned
from studies.runs import RECIPES, mean_gain, write_arguments

SEED = 0
ARMS: dict[str, tuple[str, ...]] = {
    "shapes": (),
    "labels": ("labels",),
    "views": ("views",),
    "labels+views": ("labels", "views"),
    "act-dinov2": ("dinov2",),
    "act-minilm": ("minilm",),
}
"""Arm -> what it learns from besides hidden points and pairs of views: classes of generated and embedded shapes,
DINOv2's features of depth views, or the features of an ACT autoencoder around layers of a pretrained transformer."""
TEACHERS = ("dinov2", "minilm")
SHAPES, POINTS = 64, 1024
"""Shapes of a step, each seen twice, and points of a view."""
POOL, POOL_POINTS, FROM_POOL = 4_000, 2_048, 0.6
"""Stored shapes, their points, and their share of a step; the others are solids that are drawn anew."""
LABELED = 0.4
"""Share of the stored shapes that are generated ones with a label; embedded ones are beside them, the rest solids."""
VIEW_SIZE = 168
"""Edge of a depth view in pixels."""
MASKED = 0.6
"""Share of the patches that a view hides."""
LYING = 0.15
"""Share of the shapes whose up axis is another one, in both views; the arms of 800 steps were learned without."""
HEADING = 30.0
"""Largest difference of the headings of two views of a shape, in degrees; the first has any heading."""
WEIGHTS = {"points": 1.0, "contrast": 0.2, "labels": 0.3, "views": 1.0, "dinov2": 1.0, "minilm": 1.0}
TEMPERATURE, SMOOTHING = 0.1, 0.1
"""Of the contrast, and of the labels."""
LEARNING_RATE, WEIGHT_DECAY, WARMUP, CLIP = 1e-3, 0.05, 100, 5.0
AVERAGE = 0.995
"""Decay of the averaged weights, which are kept: without a schedule, learning can end at any step."""
DECAYED = 0.5
"""Share of the steps, the last ones, in which the learning rate falls to 0 in a line, if their number is known."""
HEADS_ALONE = 100
"""Steps in which decoder and heads learn alone, if the encoder has learned before and they have not."""
DRAWN_AHEAD = 4
"""Steps whose shapes the second process draws ahead."""
STEPS = 800
"""Steps of a run, unless others are named."""
KEPT_EVERY = 50
"""Steps after which the state is stored."""
JUDGED_SHOTS = (1, 2, 5, 10)
ENCODER: dict[str, Any] = {
    "num_groups": 64,
    "group_size": 32,
    "patch_widths": [32, 64, 128],
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "drop_path_rate": 0.1,
    "pooling": ["cls", "max", "mean"],
}
PACKAGED_SIZE = "96x3"
SIZES: dict[str, dict[str, Any]] = {
    PACKAGED_SIZE: ENCODER,
    "160x5": ENCODER | {"hidden_size": 160, "num_hidden_layers": 5},
}
"""Width × depth -> settings of the encoder."""


@dataclass(frozen=True)
class Run:
    """Settings of a run: an arm, and how it is learned.

    Args:
        arm: One of `ARMS`.
        size: One of `SIZES`.
        total: Step at which learning ends for good, so that the rate falls to 0 until then; None for a constant rate.
        start: Classifier whose encoder goes on learning; None for random weights.
        first: Number of the first step, so that the shapes of earlier ones are not drawn again.
        rate: Highest learning rate.
    """

    arm: str
    size: str = PACKAGED_SIZE
    total: int | None = None
    start: Path | None = None
    first: int = 0
    rate: float = LEARNING_RATE

    @property
    def name(self) -> str:
        """The name of its file."""
        size = "" if self.size == PACKAGED_SIZE else f"-{self.size}"
        return self.arm + size + ("" if self.start is None else "-continued")

    def learns_encoder(self, step: int) -> bool:
        """Return whether the encoder learns in a step, or decoder and heads alone."""
        return self.start is None or step >= self.first + HEADS_ALONE

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step: it rises at first and, for an encoder that joins later, once more."""
        begun = self.first if self.start is None or not self.learns_encoder(step) else self.first + HEADS_ALONE
        rate = self.rate * min(1.0, (step - begun + 1) / WARMUP)
        if self.total is None:
            return rate
        return rate * min(1.0, (self.total - step) / (DECAYED * (self.total - self.first)))


class MaskedViews(nn.Module):
    """Predict the points of hidden patches, which two views are of one shape, and what the teachers of an arm say.

    Args:
        config: Sizes of the encoder.
        arm: One of `ARMS`.
        classes: Number of labels.
        width: Width of the stored features of depth views.
        teacher: Autoencoder of the arm, if it has one.

    Source: Point-MAE (arXiv 2203.06604), Sec. 3; SimCLR (arXiv 2002.05709), Sec. 2.1; ACT (arXiv 2212.08320), Sec. 3.
    """

    def __init__(self, config: ActConfig, arm: str, classes: int, width: int, teacher: ActAutoencoder | None = None):
        super().__init__()
        hidden = config.hidden_size
        self.arm, pooled = arm, len(config.pooling) * hidden
        self.encoder = ActModel(config)
        self.decoder = PointBlocks(config, depth=1, drop_path_rate=0.0)
        self.decoder_norm = nn.LayerNorm(hidden)
        self.decoder_positions = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, hidden))
        self.mask_token = nn.Parameter(torch.randn(hidden) * config.initializer_range)
        self.patch_points = nn.Linear(hidden, 3 * config.group_size)
        self.projection = nn.Sequential(nn.Linear(pooled, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))
        self.labels = nn.Linear(pooled, classes)
        self.views = nn.Sequential(nn.Linear(pooled, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, width))
        self.tokens = None if teacher is None else nn.Linear(hidden, teacher.config.hidden_size)
        self._teacher = [teacher]  # frozen, and no part of the stored state

    def forward(self, views: torch.Tensor, labels: torch.Tensor, seen: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the losses.

        Args:
            views: `(2 * shapes, points, 3)`, the first views of all shapes and then the second ones.
            labels: `(2 * shapes,)`, -100 for shapes without one.
            seen: `(2 * shapes, width)`, features of depth views; NaN for shapes that no vision model has seen.
        """
        encoder, patches = self.encoder, self.encoder.cut(views)
        num_masked = int(MASKED * patches.centers.shape[1])
        kept, hidden = split_by_mask(random_mask(patches.centers, num_masked), num_masked)
        rows = patches.neighborhoods.flatten(2)  # (views, patches, neighbors * 3)
        visible = gather_points(rows, kept).unflatten(2, (-1, 3))
        centers, masked_centers = gather_points(patches.centers, kept), gather_points(patches.centers, hidden)
        encoded = encoder.encode(encoder.patch_encoder(visible), centers).last_hidden_state
        # Decode the hidden patches: their places are known, their points are not.
        positions = self.decoder_positions(torch.cat([centers, masked_centers], dim=1))
        tokens = torch.cat([encoded[:, 1:], self.mask_token.expand(*hidden.shape, -1)], dim=1)
        decoded = self.decoder_norm(self.decoder(tokens, positions)[0][:, -num_masked:])
        predicted = self.patch_points(decoded).view(-1, encoder.config.group_size, 3)
        target = gather_points(rows, hidden).reshape(-1, encoder.config.group_size, 3)
        # Patches have a radius near 0.2, so that their distances are far below those of the contrast.
        losses = {"points": chamfer_distance(predicted, target, "l2") / target.square().sum(-1).mean()}
        # Each view finds the other of its shape among all views of the step.
        pooled = encoder._pool(encoded, None)
        features = nn.functional.normalize(self.projection(pooled), dim=1)
        scores = features @ features.T / TEMPERATURE
        scores.fill_diagonal_(-torch.inf)
        partner = torch.arange(len(views)).roll(len(views) // 2)
        losses["contrast"] = nn.functional.cross_entropy(scores, partner)
        if "labels" in ARMS[self.arm]:
            losses["labels"] = nn.functional.cross_entropy(self.labels(pooled), labels, label_smoothing=SMOOTHING)
        if "views" in ARMS[self.arm]:
            known = ~seen[:, 0].isnan()
            losses["views"] = 1 - torch.cosine_similarity(self.views(pooled)[known], seen[known]).mean()
        if (teacher := self._teacher[0]) is not None:
            assert self.tokens is not None
            with torch.no_grad():
                told = gather_points(teacher.teacher_features(patches=patches, noise=views.new_zeros(())), hidden)
                told = told - told.mean(dim=(0, 1))  # all patches have much in common
            losses[ARMS[self.arm][0]] = 1 - torch.cosine_similarity(self.tokens(decoded), told, dim=-1).mean()
        return losses


def draw_pool() -> tuple[np.ndarray, np.ndarray, int]:
    """Draw the stored shapes, upright and whole: points `(shapes, POOL_POINTS, 3)`, labels and their number."""
    rows = embedded_shapes(unseen=False).with_format("numpy")
    _, of_embedded = np.unique(rows["label"][:], return_inverse=True)
    names = list(CLASSES)[::2]
    points, labels = [], []
    for number in range(POOL):
        r = Draw(np.random.default_rng([SEED, number]))
        if number < LABELED * POOL:
            label = number % len(names)
            points.append(draw_shape(names[label], SEED, number, POOL_POINTS, NONE))
        else:
            label = -100
            points.append(draw_solid(r, POOL_POINTS))
        labels.append(label)
    twice = np.concatenate([rows["points"][:]] * 2, axis=1)  # they have 1,024 points
    return (
        np.concatenate([np.stack(points), twice]).astype(np.float32),
        np.concatenate([labels, of_embedded + len(names)]),
        len(names) + int(of_embedded.max()) + 1,
    )


def see(points: np.ndarray) -> np.ndarray:
    """Return DINOv2's class token and mean patch of six depth views of each shape, averaged: `(shapes, 768)`."""
    vision, found = AutoModel.from_pretrained(donors_folder() / "dinov2", dtype=torch.bfloat16).eval(), []
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for part in tqdm(torch.from_numpy(points).split(16), desc="depth views"):
        images = depth_views(part, VIEW_SIZE)  # (shapes, views, size, size)
        pixels = ((images.flatten(0, 1).unsqueeze(1) - mean) / std).bfloat16()
        with torch.no_grad():
            hidden = vision(pixel_values=pixels).last_hidden_state
        both = torch.cat([hidden[:, 0], hidden[:, 1:].mean(dim=1)], dim=1)
        found.append(both.float().unflatten(0, images.shape[:2]).mean(dim=1))
    features = torch.cat(found).numpy()
    return (features - features.mean(axis=0)) / features.std(axis=0)


def load_pool(folder: Path) -> dict[str, Any]:
    """Read the stored shapes with labels and features of depth views; make them on the first call."""
    path = folder / "pool.npz"
    if not path.is_file():
        points, labels, classes = draw_pool()
        np.savez(path, points=points.astype(np.float16), labels=labels, classes=classes, seen=see(points))
    return dict(np.load(path))


def autoencoder_of(name: str, pool: dict[str, Any], folder: Path) -> ActAutoencoder:
    """Open ACT's autoencoder around two layers of a pretrained transformer; train it on the first call."""
    path = folder / f"autoencoder-{name}"
    if not path.is_dir():
        rows = np.random.default_rng(SEED).permutation(len(pool["points"]))
        kinds = Features({"points": Array2D((POINTS, 3), "float32"), "label": ClassLabel(names=["shape"])})
        for split, part in (("train", rows[:-200]), ("test", rows[-200:])):
            points = pool["points"][part, :POINTS].astype(np.float32)
            of_split = Dataset.from_dict({"points": points, "label": [0] * len(points)}, kinds)
            of_split.to_parquet(folder / "shapes" / f"{split}.parquet")
        settings = {
            "extends": str(RECIPES / "shapes_act_autoencoder.yaml"),
            "dataset_name": "parquet",
            "data_dir": str(folder / "shapes"),
            "teacher": str(donors_folder() / name),
            "model_config": {"num_groups": ENCODER["num_groups"], "group_size": ENCODER["group_size"]},
            "max_steps": 600,
            "save_strategy": "no",
            "use_cpu": True,
        }
        run_act_autoencoder.main([write_arguments(folder / f"run-{name}", settings, path)])
    return ActAutoencoder.from_pretrained(path).eval()


def draw_views(step: int, pool: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw the views `(2 * SHAPES, POINTS, 3)` of a step by its number, their labels and features."""
    first, second, labels, seen = [], [], [], []
    for number in range(SHAPES):
        r = Draw(np.random.default_rng([SEED, step, number]))
        if r.yes(FROM_POOL):
            row = r.whole(0, len(pool["points"]) - 1)
            # Embedded shapes are few, so that each is seen more often.
            row = r.whole(POOL, len(pool["points"]) - 1) if r.yes(0.15) else row
            stretch = [np.exp(r(-0.3, 0.3)) for _ in range(3)]
            shape = normalized(pool["points"][row].astype(np.float64) * stretch)
            labels.append(pool["labels"][row])
            seen.append(pool["seen"][row])
        else:
            shape = draw_solid(r, POOL_POINTS)
            labels.append(-100)
            seen.append(np.full(pool["seen"].shape[1], np.nan))
        shape = turned(turned(shape, 90, "xz"[r.whole(0, 1)]) if r.yes(LYING) else shape, r(0, 360))
        for views, heading in ((first, 0.0), (second, r(-HEADING, HEADING))):
            view = turned(turned(shape, heading), r(-8, 8), "xz"[r.whole(0, 1)])
            views.append(scanned(r, view, POINTS))
    twice = np.concatenate([seen, seen]).astype(np.float32)
    return torch.from_numpy(np.stack(first + second)), torch.tensor(labels * 2), torch.from_numpy(twice)


class StepViews(torch.utils.data.Dataset):
    """The views of all steps, by their numbers, to be drawn in another process."""

    def __init__(self, pool: dict[str, Any]):
        self.pool = pool

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw the views of a step, their labels and features."""
        return draw_views(step, self.pool)


class Learner:
    """All that changes while a run learns, and its file."""

    def __init__(self, run: Run, model: MaskedViews, path: Path):
        self.run, self.model, self.path = run, model, path
        decayed = [p for p in model.parameters() if p.dim() > 1]
        plain = [p for p in model.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=run.rate, betas=(0.9, 0.95))
        self.average = {name: value.clone() for name, value in model.encoder.state_dict().items()}
        self.step, self.cpu_seconds = run.first, 0.0

    def store(self) -> None:
        """Write everything to one file, from which the run goes on or the encoder is opened."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "cpu_seconds": self.cpu_seconds,
            "encoder": SIZES[self.run.size],
        }
        with atomic_write(self.path) as unfinished:
            torch.save(state, unfinished)

    def go_on(self) -> None:
        """Load the stored state, if there is one."""
        if not self.path.is_file():
            return
        stored = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(stored["model"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.average = stored["average"]
        self.step = stored["step"]
        self.cpu_seconds = stored["cpu_seconds"]

    def learn_from(self, views: torch.Tensor, labels: torch.Tensor, seen: torch.Tensor) -> dict[str, torch.Tensor]:
        """Learn a step, and return its losses."""
        run, model, step = self.run, self.model, self.step
        torch.manual_seed(step)
        for group in self.optimizer.param_groups:
            group["lr"] = run.rate_at(step)
        model.encoder.requires_grad_(run.learns_encoder(step))
        losses = model(views, labels, seen)
        self.optimizer.zero_grad()
        torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        self.optimizer.step()
        done = step - run.first
        decay = min(AVERAGE, (1 + done) / (10 + done))  # the first weights are soon forgotten
        for name, value in model.encoder.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
        self.step += 1
        return losses


def learn(folder: Path, run: Run, steps: int) -> Path:
    """Learn until a step, from the last stored one on, and return the file of the run.

    It is stored every `KEPT_EVERY` steps. While a step is learned, a second process draws the shapes of the next ones.
    """
    pool = load_pool(folder)
    teachers = [autoencoder_of(name, pool, folder) for name in TEACHERS if name in ARMS[run.arm]]
    set_seed(SEED)
    model = MaskedViews(ActConfig(**SIZES[run.size]), run.arm, int(pool["classes"]), pool["seen"].shape[1], *teachers)
    if run.start is not None:
        earlier = ActForPointCloudClassification.from_pretrained(run.start).act
        model.encoder.load_state_dict(earlier.state_dict())
    learner = Learner(run, model, folder / f"{run.name}.pt")
    learner.go_on()
    ahead = range(learner.step, steps)
    drawn = DataLoader(StepViews(pool), batch_size=None, sampler=ahead, num_workers=1, prefetch_factor=DRAWN_AHEAD)
    before, start = learner.cpu_seconds, time.process_time()
    for views, labels, seen in drawn:
        losses = learner.learn_from(views, labels, seen)
        if learner.step % KEPT_EVERY == 0 or learner.step == steps:
            learner.cpu_seconds = before + time.process_time() - start
            learner.store()
            told = ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            spent = f"{learner.cpu_seconds:.0f} CPU seconds"
            print(f"{run.name}, step {learner.step}: {told}; {spent} without the drawing", flush=True)
    return learner.path


def learned_encoder(path: Path) -> ActModel:
    """Open the encoder of a stored state, with the averaged weights."""
    stored = torch.load(path, weights_only=True)
    encoder = ActModel(ActConfig(**stored.get("encoder", ENCODER)))  # older files do not name the size
    encoder.load_state_dict(stored["average"])
    return encoder.eval()


def features_of(encoder: ActModel, points: np.ndarray) -> np.ndarray:
    """Return the pooled features of shapes."""
    with torch.no_grad():
        pieces = [encoder.eval()(points=part).pooler_output for part in torch.from_numpy(points).split(64)]
    return torch.cat(pieces).numpy()


def judge(features: np.ndarray, shapes: Shapes, draws: int) -> dict[int, np.ndarray]:
    """Return the accuracy of linear heads on the features in each draw, for so many shapes a class."""
    found = {}
    for shots in JUDGED_SHOTS:
        right = []
        for number in range(draws):
            division = draw(shapes, shots, number)
            rows = features[division.train]
            mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                head = LogisticRegression(max_iter=300).fit((rows - mean) / scale, division.labels)
            right.append(head.score((features[division.test] - mean) / scale, division.test_labels))
        found[shots] = np.array(right)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Learn the arms, and judge them on the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kicad", type=Path, help="folder of the parts to judge by")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/packaged_encoder"))
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--size", default=PACKAGED_SIZE, choices=list(SIZES), help="width and depth of the encoder")
    parser.add_argument("--steps", type=int, help="step to learn until; 800, or the last one of --total")
    parser.add_argument("--total", type=int, help="last step of all, until which the learning rate falls to 0")
    parser.add_argument("--start", type=Path, help="classifier whose encoder goes on learning")
    parser.add_argument("--first", type=int, default=0, help="number of the first step")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="highest learning rate")
    parser.add_argument("--against", type=Path, default=Path(default_model()), help="classifier of another encoder")
    parser.add_argument("--draws", type=int, default=12, help="draws to judge by")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    encoders = {"against": ActForPointCloudClassification.from_pretrained(options.against).act}
    steps = options.steps or options.total or STEPS
    for arm in options.arms:
        run = Run(arm, options.size, options.total, options.start, options.first, options.rate)
        encoders[run.name] = learned_encoder(learn(options.output_dir, run, steps))
    if options.kicad is not None:
        shapes = parts(options.kicad)
        found = {
            name: judge(features_of(encoder, shapes.points), shapes, options.draws)
            for name, encoder in encoders.items()
        }
        for name, accuracies in found.items():
            for shots, right in accuracies.items():
                gain = mean_gain(100 * (right - found["against"][shots]))
                print(f"{name}, {shots} a class: {100 * right.mean():.1f}; {gain}")


if __name__ == "__main__":
    main()
