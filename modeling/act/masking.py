"""Masks of the patches that are hidden from the student."""

from collections.abc import Callable

import torch


def random_mask(centers: torch.Tensor, num_masked: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Hide `num_masked` patches of each cloud, drawn uniformly: `(batch, groups)` booleans, True where hidden."""
    # The order of random numbers is a random permutation; its first entries are drawn without repetition.
    draws = torch.rand(centers.shape[:2], device=centers.device, generator=generator)
    return _mask_of(draws.argsort(dim=1)[:, :num_masked], draws.shape)


def block_mask(
    centers: torch.Tensor,
    num_masked: int | torch.Tensor,
    generator: torch.Generator | None = None,
    seed_groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hide one connected region of each cloud, the `num_masked` patches nearest to one of them, as `random_mask` does.

    `num_masked` is one number, or one for each cloud, `(batch,)`. `seed_groups (batch,)` are the patches in the middle
    of each region; None draws them uniformly.
    """
    batch, groups, _ = centers.shape
    if seed_groups is None:
        seed_groups = torch.randint(groups, (batch,), device=centers.device, generator=generator)
    seeds = centers[torch.arange(batch, device=centers.device), seed_groups].unsqueeze(1)  # (batch, 1, 3)
    squared = (centers - seeds).square().sum(dim=-1)  # (batch, groups)
    # Stable: of equally near patches, those with lower numbers are hidden.
    order = squared.argsort(dim=1, stable=True)
    if isinstance(num_masked, torch.Tensor):
        # The place of each patch in that order.
        return order.argsort(dim=1) < num_masked.unsqueeze(1)
    return _mask_of(order[:, :num_masked], squared.shape)


# To add a kind of mask, write a function and register it here.
MASKS: dict[str, Callable[..., torch.Tensor]] = {"random": random_mask, "block": block_mask}


def split_by_mask(mask: torch.Tensor, num_masked: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of visible `(batch, visible)` and of hidden `(batch, masked)` patches, in ascending order.

    The mask `(batch, groups)` is True for equally many in every row; it is counted, for which an accelerator waits,
    unless their number is known.
    """
    if num_masked is None:
        counts = mask.sum(dim=1).tolist()
        if len(set(counts)) != 1:
            raise ValueError(f"mask: hides {counts} patches of the clouds; expected equal numbers")
        num_masked = counts[0]
    # A stable sort of 0 and 1 keeps ascending indices within both.
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    visible = mask.shape[1] - num_masked
    return order[:, :visible], order[:, visible:]


def _mask_of(hidden: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bool, device=hidden.device).scatter_(1, hidden, True)
