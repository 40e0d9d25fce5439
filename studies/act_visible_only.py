"""Change of batch norm statistics when the mini-PointNet of ACT encodes visible patches alone.

    python -m studies.act_visible_only

Fine-tuning starts from these running statistics and encodes all patches. They are measured on the embedded shapes,
scaled and shifted as in pretraining, with the published patches and mask ratio and fresh weights. Differences of means
and deviations are in units of the deviations over all patches, averaged over channels; the row "all" is batch noise.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from hf_any3d import load_point_dataset
from hf_any3d.modeling.act.masking import MASKS, split_by_mask
from hf_any3d.modeling.point_encoders.point_transformer import PatchEncoder, group_patches
from hf_any3d.modeling.point_ops import gather_points

GROUPS, SIZE, RATIO = 64, 32, 0.8


def augmented(clouds: torch.Tensor) -> torch.Tensor:
    """Scale clouds `(batch, points, 3)` by 2/3 to 3/2 and shift them by up to 0.2 along each axis."""
    scale = torch.empty(len(clouds), 1, 3).uniform_(2 / 3, 3 / 2)
    return clouds * scale + torch.empty(len(clouds), 1, 3).uniform_(-0.2, 0.2)


def running(encoder: PatchEncoder) -> torch.Tensor:
    """Return running means and deviations of both norms, `(2, channels)`."""
    norms = encoder.lift_norm, encoder.join_norm
    means, variances = (torch.cat([getattr(n, name) for n in norms]) for name in ("running_mean", "running_var"))
    return torch.stack([means, variances.sqrt()])


@torch.no_grad()
def distance(mask_type: str | None, clouds: torch.Tensor, seed: int, batch: int, passes: int) -> float:
    """Measure how far statistics under a mask (None: of all patches) are from those over all clouds at once."""
    torch.manual_seed(seed)
    encoder = PatchEncoder(3, 384).train()
    for number in range(passes):
        patches = group_patches(augmented(clouds[torch.randperm(len(clouds))[:batch]]), GROUPS, SIZE)
        rows = patches.neighborhoods  # (batch, groups, neighbors, 3)
        if mask_type is not None:
            visible, _ = split_by_mask(MASKS[mask_type](patches.centers, int(RATIO * GROUPS)))
            rows = gather_points(rows.flatten(2), visible).view(batch, -1, SIZE, 3)
        # Gives every pass the same weight.
        encoder.lift_norm.momentum = encoder.join_norm.momentum = 1 / (number + 1)
        encoder(rows)
    found = running(encoder)
    encoder.lift_norm.momentum = encoder.join_norm.momentum = 1.0
    encoder(group_patches(augmented(clouds), GROUPS, SIZE).neighborhoods)
    of_all = running(encoder)
    return ((found - of_all).abs() / of_all[1]).mean().item()


def main() -> None:
    """Measure all masks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    shapes = load_point_dataset("shapes").with_format("torch")
    clouds = torch.stack(list(shapes["train"]["points"]))
    print("| patches read | distance from the statistics of all, in deviations |")
    print("|---|---|")
    for mask_type in (None, *MASKS):
        found = [distance(mask_type, clouds, s, arguments.batch, arguments.passes) for s in range(arguments.seeds)]
        print(f"| {mask_type or 'all'} | {statistics.mean(found):.4f} ± {statistics.stdev(found):.4f} |")


if __name__ == "__main__":
    main()
