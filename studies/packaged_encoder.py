"""Learn the packaged encoder from generated shapes without labels, and keep it only if it wins on unseen classes.

    python -m studies.packaged_encoder --learn                     # learn; can be stopped and continued
    python -m studies.few_scans --encoders packaged learned random # linear heads on classes that nobody has seen

The plan, chosen before the first result, and the results: `results/packaged_encoder.md`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import set_seed

from examples import train_default_model
from hf_any3d import ActConfig, ActModel, load_point_dataset
from hf_any3d.modeling.act.masking import random_mask, split_by_mask
from hf_any3d.modeling.point_encoders.point_transformer import PointBlocks
from hf_any3d.modeling.point_ops import chamfer_distance, gather_points
from hf_any3d.utils.atomic_files import atomic_write
from studies.generated_shapes import normalized
from studies.generated_shapes.families import draw_solid, scanned
from studies.generated_shapes.surfaces import Draw, turned

UNSEEN = ("chair", "door", "lamp", "plant", "sofa", "storage", "table", "tool", "vehicle", "window")
"""Embedded classes that no compared encoder has seen, with or without their labels."""
SEED = 0
SHAPES, POINTS = 64, 1024
"""Shapes of a step, each seen twice, and points of a view."""
EMBEDDED_SHARE = 0.15
"""Share of the shapes that are embedded ones, of the classes that are not `UNSEEN`."""
MASKED = 0.6
"""Share of the patches that a view hides."""
HEADING = 30.0
"""Largest difference of the headings of two views of a shape, in degrees; the first has any heading."""
CONTRAST, TEMPERATURE = 0.2, 0.1
"""Weight of the loss that tells the views of a shape from those of others, and its temperature."""
LEARNING_RATE, WEIGHT_DECAY, WARMUP, CLIP = 1e-3, 0.05, 100, 5.0
AVERAGE = 0.995
"""Decay of the averaged weights, which are kept: learning can end at any step, without a schedule."""


KEPT_EVERY = 50
"""Steps after which the state is stored."""


class MaskedViews(nn.Module):
    """Predict the points of hidden patches, and which two views are of one shape.

    Args:
        config: Sizes of the encoder.

    Source: Point-MAE (arXiv 2203.06604), Sec. 3; the second loss: SimCLR (arXiv 2002.05709), Sec. 2.1.
    """

    def __init__(self, config: ActConfig):
        super().__init__()
        width = config.hidden_size
        self.encoder = ActModel(config)
        self.decoder = PointBlocks(config, depth=1, drop_path_rate=0.0)
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_positions = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.mask_token = nn.Parameter(torch.randn(width) * config.initializer_range)
        self.patch_points = nn.Linear(width, 3 * config.group_size)
        self.projection = nn.Sequential(
            nn.Linear(len(config.pooling) * width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64)
        )

    def forward(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute both losses.

        Args:
            views: `(2 * shapes, points, 3)`, the first views of all shapes and then the second ones.
        """
        encoder, patches = self.encoder, self.encoder.cut(views)
        num_masked = int(MASKED * patches.centers.shape[1])
        seen, hidden = split_by_mask(random_mask(patches.centers, num_masked), num_masked)
        rows = patches.neighborhoods.flatten(2)  # (views, patches, neighbors * 3)
        visible = gather_points(rows, seen).unflatten(2, (-1, 3))
        centers, masked_centers = gather_points(patches.centers, seen), gather_points(patches.centers, hidden)
        encoded = encoder.encode(encoder.patch_encoder(visible), centers).last_hidden_state
        # Decode the hidden patches: their places are known, their points are not.
        positions = self.decoder_positions(torch.cat([centers, masked_centers], dim=1))
        tokens = torch.cat([encoded[:, 1:], self.mask_token.expand(*hidden.shape, -1)], dim=1)
        decoded = self.decoder_norm(self.decoder(tokens, positions)[0][:, -num_masked:])
        predicted = self.patch_points(decoded).view(-1, encoder.config.group_size, 3)
        target = gather_points(rows, hidden).reshape(-1, encoder.config.group_size, 3)
        # Patches have a radius near 0.2, so that their distances are far below those of the contrast.
        points_loss = chamfer_distance(predicted, target, "l2") / target.square().sum(-1).mean()
        # Each view finds the other of its shape among all views of the step.
        features = nn.functional.normalize(self.projection(encoder._pool(encoded, None)), dim=1)
        scores = features @ features.T / TEMPERATURE
        scores.fill_diagonal_(-torch.inf)
        partner = torch.arange(len(views)).roll(len(views) // 2)
        return {"points": points_loss, "contrast": nn.functional.cross_entropy(scores, partner)}


def draw_views(step: int, embedded: np.ndarray) -> torch.Tensor:
    """Draw the views `(2 * SHAPES, POINTS, 3)` of a step, which depend on its number alone."""
    first, second = [], []
    for number in range(SHAPES):
        r = Draw(np.random.default_rng([SEED, step, number]))
        if r.yes(EMBEDDED_SHARE):
            shape = normalized(embedded[r.whole(0, len(embedded) - 1)] * [np.exp(r(-0.4, 0.4)) for _ in range(3)])
        else:
            shape = draw_solid(r, 2 * POINTS)
        shape = turned(shape, r(0, 360))
        for views, heading in ((first, 0.0), (second, r(-HEADING, HEADING))):
            view = turned(turned(shape, heading), r(-8, 8), "xz"[r.whole(0, 1)])
            views.append(scanned(r, view, POINTS))
    return torch.from_numpy(np.stack(first + second))


def embedded_shapes(unseen: bool) -> Dataset:
    """Load the embedded shapes of the classes in `UNSEEN`, or those of the others that may be learned from.

    The shapes to learn from are of the training split; those to compare with are of both splits, since no encoder has
    seen any of them.
    """
    splits = load_point_dataset("shapes")
    rows = concatenate_datasets([splits["train"], splits["test"]]) if unseen else splits["train"]
    names = rows.features["label"].names
    numbers = {names.index(name) for name in UNSEEN}
    return rows.filter(lambda label: (label in numbers) == unseen, input_columns="label")


def learn(folder: Path, steps: int) -> None:
    """Learn until a step, from the last stored one on; the state is stored every `KEPT_EVERY` steps."""
    set_seed(SEED)
    model = MaskedViews(ActConfig(**train_default_model.ACT))
    average = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    path, first, seconds = folder / "learning.pt", 0, 0.0
    if path.is_file():
        stored = torch.load(path, weights_only=True)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        average, first, seconds = stored["average"], stored["step"], stored["cpu_seconds"]
    embedded = np.stack(embedded_shapes(unseen=False).with_format("numpy")["points"][:])
    start = time.process_time()
    for step in range(first, steps):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP)
        losses = model(draw_views(step, embedded))
        optimizer.zero_grad()
        (losses["points"] + CONTRAST * losses["contrast"]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        decay = min(AVERAGE, (1 + step) / (10 + step))  # the first weights are soon forgotten
        for name, value in model.encoder.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - decay)
        if (step + 1) % KEPT_EVERY == 0 or step + 1 == steps:
            spent = seconds + time.process_time() - start
            told = ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"step {step + 1}: {told}; {spent:.0f} CPU seconds", flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            with atomic_write(path) as unfinished:
                torch.save({**state, "step": step + 1, "cpu_seconds": spent}, unfinished)


def learned_encoder(folder: Path) -> ActModel:
    """Return the encoder with the averaged weights."""
    encoder = ActModel(ActConfig(**train_default_model.ACT))
    encoder.load_state_dict(torch.load(folder / "learning.pt", weights_only=True)["average"])
    return encoder.eval()


def main(arguments: list[str] | None = None) -> None:
    """Learn or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/packaged_encoder"))
    parser.add_argument("--learn", action="store_true", help="learn the encoder")
    parser.add_argument("--steps", type=int, default=3800, help="steps to learn")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if options.learn:
        learn(options.output_dir, options.steps)


if __name__ == "__main__":
    main()
