"""Contents of patches and errors."""

import torch

from hf_any3d.modeling.point_encoders.patches import Patches, group_patches


def clouds(channels: int = 3) -> torch.Tensor:
    return torch.rand(2, 60, channels, generator=torch.Generator().manual_seed(0)) - 0.5


def test_selected_patches_keep_all_that_belongs_to_them():
    patches = group_patches(clouds(6), 8, 5)
    chosen = patches.select(torch.tensor([[7, 0], [3, 3]]))
    for name in ("neighborhoods", "centers", "center_index"):
        whole, some = getattr(patches, name), getattr(chosen, name)
        assert torch.equal(some, torch.stack([whole[0, [7, 0]], whole[1, [3, 3]]])), name
    kept = Patches(patches.neighborhoods, patches.centers, patches.center_index)  # without indices of the neighbors
    assert kept.select(torch.tensor([[7, 0], [3, 3]])).neighbor_index is None
