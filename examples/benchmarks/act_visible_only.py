"""What it does to a student that its mini-PointNet reads visible patches alone, as is the default, or all of them.

    python examples/benchmarks/act_visible_only.py --output act_visible_only.json

On the embedded shapes, with small widths: one autoencoder without a foreign encoder is trained for a while, then
students with the same weights, clouds and masks learn from it in both ways. Reported for each: the loss of the last
epoch, how far the norms' running statistics are from those of all patches of the training clouds, and the accuracy of
a linear probe (logistic regression on frozen features of whole clouds) on the test clouds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from hf_any3d import ActAutoencoder, ActAutoencoderConfig, ActConfig, ActForPreTraining, load_point_dataset
from hf_any3d.modeling.act import gumbel_temperature

CUT = {"num_groups": 32, "group_size": 16}
TEACHER = CUT | {"hidden_size": 96, "num_codes": 256, "graph_widths": (64, 64, 128, 128), "graph_input_width": 64}
STUDENT = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "head_widths": ()}
WAYS = {"visible patches": True, "all patches": False}


def batches(clouds: torch.Tensor, size: int, generator: np.random.Generator) -> list[torch.Tensor]:
    """An epoch of shuffled clouds, scaled and shifted as the paper does it."""
    rows = []
    for index in np.array_split(generator.permutation(len(clouds)), len(clouds) // size):
        scale = torch.from_numpy(generator.uniform(2 / 3, 3 / 2, (len(index), 1, 3))).float()
        shift = torch.from_numpy(generator.uniform(-0.2, 0.2, (len(index), 1, 3))).float()
        rows.append(clouds[index] * scale + shift)
    return rows


def train(model: nn.Module, clouds: torch.Tensor, epochs: int, seed: int, title: str, **arguments: Any) -> list[float]:
    """AdamW with a one-cycle rate; gives the mean loss of each epoch."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.05)
    steps = epochs * (len(clouds) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    losses, done = [], 0
    for _ in tqdm(range(epochs), desc=title):
        epoch = []
        for points in batches(clouds, 32, generator):
            if "temperature" in arguments:
                arguments["temperature"] = gumbel_temperature(done, steps)
            loss = model(points, **arguments).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            epoch.append(loss.item())
        losses.append(statistics.mean(epoch))
    return losses


@torch.no_grad()
def statistics_apart(model: ActForPreTraining, clouds: torch.Tensor) -> float:
    """How far running means and deviations are from those of all patches, in deviations, mean over channels."""
    encoder, seen = model.act.patch_encoder.eval(), {}
    norms = {"lift": encoder.lift_norm, "join": encoder.join_norm}
    hooks = [
        norm.register_forward_hook(lambda _, args, output, name=name: seen.__setitem__(name, args[0]))
        for name, norm in norms.items()
    ]
    encoder(model.act.cut(clouds).neighborhoods)
    for hook in hooks:
        hook.remove()
    apart = []
    for name, norm in norms.items():
        deviation = seen[name].std(dim=0)
        apart.append((norm.running_mean - seen[name].mean(dim=0)).abs() / deviation)
        apart.append((norm.running_var.sqrt() - deviation).abs() / deviation)
    return torch.cat(apart).mean().item()


def probe(model: ActForPreTraining, clouds: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> float:
    """Test accuracy of logistic regression on features of whole clouds."""
    features = {name: model.eval().probe_features(points) for name, points in clouds.items()}
    mean, deviation = features["train"].mean(dim=0), features["train"].std(dim=0)
    features = {name: (rows - mean) / deviation for name, rows in features.items()}
    linear = nn.Linear(len(mean), int(labels["train"].max()) + 1)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(linear(features["train"]), labels["train"])
        loss = loss + 1e-3 * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (linear(features["test"]).argmax(dim=-1) == labels["test"]).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4, help="of each student; the autoencoder has half of them")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shapes = load_point_dataset("shapes").with_format("torch")
    clouds = {name: torch.stack(list(shapes[name]["points"])) for name in ("train", "test")}
    labels = {name: torch.as_tensor(shapes[name]["label"]) for name in ("train", "test")}
    torch.manual_seed(0)
    autoencoder = ActAutoencoder(ActAutoencoderConfig(**TEACHER))
    train(autoencoder, clouds["train"], max(1, arguments.epochs // 2), 0, "autoencoder", temperature=1.0)
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed in range(arguments.seeds):
        for way, visible_only in WAYS.items():
            torch.manual_seed(seed)
            config = ActConfig(
                autoencoder_config=autoencoder.config, encode_visible_only=visible_only, **CUT | STUDENT
            )
            model = ActForPreTraining(config, autoencoder)
            untrained = probe(model, clouds, labels)
            losses = train(model, clouds["train"], arguments.epochs, seed, f"{way}, seed {seed}")
            rows[way].append(
                {
                    "last_loss": losses[-1],
                    "statistics_apart": statistics_apart(model, clouds["train"]),
                    "probe": probe(model, clouds, labels),
                    "probe_untrained": untrained,
                }
            )
    print("| the mini-PointNet reads | loss of the last epoch | statistics apart | linear probe | probe, untrained |")
    print("|---|---|---|---|---|")
    for way, runs in rows.items():
        cells = []
        for key in runs[0]:
            values = [run[key] for run in runs]
            cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}")
        print(f"| {way} | {' | '.join(cells)} |")
    if arguments.output:
        unfinished = arguments.output.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(rows, indent=2) + "\n")
        unfinished.replace(arguments.output)


if __name__ == "__main__":
    main()
