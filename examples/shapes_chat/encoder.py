"""Train a point encoder to classify the training shapes, their colors and their proportions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from tqdm.auto import trange
from transformers import AutoConfig, AutoModel, PreTrainedModel, set_seed

from examples.shapes_chat.facts import COLORS, PROPORTIONS, ShapeFacts
from hf_any3d import PointCloudProcessor

ENCODER: dict[str, Any] = {
    "in_channels": 6,
    "num_groups": 32,
    "group_size": 24,
    "patch_widths": [32, 64, 128],
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "mlp_ratio": 2.0,
}
"""Config of an `act3d` model."""

TRAINING: dict[str, Any] = {"steps": 2000, "batch_size": 32, "learning_rate": 2e-3}
BLACKENED = 0.3
"""Share of the clouds without colors, so that the class must be learned from the shape too."""
CLASSES: dict[str, tuple[str | None, ...]] = {
    "color": COLORS,
    "second": (*COLORS, None),
    "upper": COLORS,
    "middle": COLORS,
    "lower": COLORS,
    "proportion": PROPORTIONS,
}
"""Classes of each head but that of the labels."""
OF_COLORS = ("color", "second", "upper", "middle", "lower")
WEIGHTS = {"label": 1.0, "proportion": 0.3} | dict.fromkeys(OF_COLORS, 0.3)
"""Weight of each head in the loss."""


class Probes(nn.Module):
    """Linear heads on the class token and the maximum over patches; they are not stored.

    Args:
        width: Channels of a token.
        sizes: Number of classes of each head, by name.
    """

    def __init__(self, width: int, sizes: dict[str, int]):
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * width, size) for name, size in sizes.items()})

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute logits `(clouds, classes)` of each head from tokens `(clouds, 1 + groups, width)`."""
        features = self.drop(torch.cat([tokens[:, 0], tokens[:, 1:].amax(dim=1)], dim=-1))
        return {name: head(features) for name, head in self.heads.items()}


def targets_of(facts: Sequence[ShapeFacts], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Collect the target classes `(shapes,)` of each head."""
    among = {"label": tuple(names), **CLASSES}
    return {
        what: torch.tensor([among[what].index(getattr(one, what)) for one in facts], dtype=torch.long)
        for what in WEIGHTS
    }


def clouds_of(rows: Dataset) -> torch.Tensor:
    """Load all points of shapes, `(shapes, 1024, 6)`, centered and scaled by MiniGPT-3D's processor."""
    count = len(rows.with_format("numpy")[0]["points"])
    prepare = PointCloudProcessor(num_points=count, sampling="first", features=("xyz", "rgb"))
    rows = rows.with_format("numpy")
    return prepare([{"points": row["points"], "colors": row["colors"]} for row in rows])["points"]


def augmented(clouds: torch.Tensor) -> torch.Tensor:
    """Keep at least half of the points, `(batch, kept, 6)`; stretch, mirror left and right, jitter and rescale."""
    batch, count, _ = clouds.shape
    kept = int(torch.randint(count // 2, count + 1, ()))
    clouds = clouds[:, torch.randperm(count)[:kept]]
    xyz, colors = clouds[..., :3], clouds[..., 3:]
    stretch = torch.empty(batch, 1, 3).uniform_(0.67, 1.5)
    stretch[..., 0] *= torch.randint(2, (batch, 1)) * 2 - 1
    xyz = xyz * stretch + 0.01 * torch.randn_like(xyz)
    xyz = xyz - xyz.mean(dim=1, keepdim=True)
    return torch.cat([xyz / xyz.norm(dim=-1).amax(dim=1)[:, None, None], colors], dim=-1)


def train_encoder(rows: Dataset, facts: Sequence[ShapeFacts], seed: int) -> tuple[PreTrainedModel, Probes]:
    """Train an encoder and its heads.

    Args:
        rows: Training shapes.
        facts: Facts about each.
        seed: Seed of weights, order and augmentation.
    """
    names = rows.features["label"].names
    set_seed(seed)
    model = AutoModel.from_config(AutoConfig.for_model("act3d", **ENCODER))
    sizes = {"label": len(names), **{what: len(classes) for what, classes in CLASSES.items()}}
    probes = Probes(model.config.hidden_size, sizes)
    clouds, targets = clouds_of(rows), targets_of(facts, names)
    parameters = [*model.parameters(), *probes.parameters()]
    steps, rate = TRAINING["steps"], TRAINING["learning_rate"]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    order: list[int] = []
    for _ in trange(steps, desc="point encoder"):
        if len(order) < TRAINING["batch_size"]:
            order = torch.randperm(len(clouds)).tolist()
        chosen, order = order[: TRAINING["batch_size"]], order[TRAINING["batch_size"] :]
        shown = augmented(clouds[chosen])
        blackened = torch.rand(len(chosen)) < BLACKENED
        shown[blackened, :, 3:] = 0
        logits = probes(model(shown).last_hidden_state)
        loss = sum(
            weight * _loss(logits[what], targets[what][chosen], what in OF_COLORS and blackened)
            for what, weight in WEIGHTS.items()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
    return model.eval(), probes.eval()


def _loss(logits: torch.Tensor, targets: torch.Tensor, hidden: torch.Tensor | bool) -> torch.Tensor:
    if hidden is not False:
        targets = targets.masked_fill(hidden, -100)
    return nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)


@torch.no_grad()
def probe_answers(
    model: PreTrainedModel, probes: Probes, rows: Dataset, facts: Sequence[ShapeFacts]
) -> dict[str, str]:
    """Return for each head which shapes it classifies correctly, a digit each."""
    clouds, targets = clouds_of(rows), targets_of(facts, rows.features["label"].names)
    logits = [probes(model(part).last_hidden_state) for part in clouds.split(48)]
    return {
        what: digits(torch.cat([part[what] for part in logits]).argmax(dim=-1) == target)
        for what, target in targets.items()
    }


def digits(right: Iterable[Any]) -> str:
    """Write truth values as digits."""
    return "".join(str(int(one)) for one in right)
