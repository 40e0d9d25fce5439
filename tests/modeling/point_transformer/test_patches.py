"""Contents of patches and errors."""

import torch

from hf_any3d.modeling.point_encoders.point_transformer import Patches, group_patches
from tests.errors import raises


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


def test_as_many_points_as_centers_or_points_of_a_patch_are_enough():
    for groups, size in ((8, 5), (5, 8)):
        patches = group_patches(clouds()[:, :8], groups, size)
        assert patches.neighborhoods.shape == (2, groups, size, 3)
        with raises(ValueError, naming="expected 1 to 7"):
            group_patches(clouds()[:, :7], groups, size)
