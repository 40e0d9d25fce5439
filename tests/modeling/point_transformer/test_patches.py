"""Contents of patches and errors."""

import torch

from hf_any3d.modeling.point_encoders.point_transformer import Patches, group_patches
from tests.errors import raises


def clouds(channels: int = 3) -> torch.Tensor:
    return torch.rand(2, 60, channels, generator=torch.Generator().manual_seed(0)) - 0.5


def test_a_patch_holds_the_nearest_points_relative_to_its_center():
    points = clouds()
    patches = group_patches(points, 8, 5)
    for cloud in range(2):
        for number in range(8):
            center = points[cloud, patches.center_index[cloud, number]]
            assert torch.equal(patches.centers[cloud, number], center)
            near = (points[cloud] - center).norm(dim=1).argsort()[:5]
            assert torch.equal(patches.neighborhoods[cloud, number], points[cloud, near] - center)
            torch.testing.assert_close(patches.points[cloud, number], points[cloud, near])


def test_further_channels_are_unchanged():
    points = clouds(6)
    patches = group_patches(points, 8, 5)
    assert torch.equal(patches.neighborhoods[..., :3], group_patches(points[..., :3], 8, 5).neighborhoods)
    own = torch.stack([cloud[index] for cloud, index in zip(points, patches.center_index, strict=True)])
    assert torch.equal(patches.neighborhoods[:, :, 0, 3:], own[..., 3:])


def test_selected_patches_keep_all_that_belongs_to_them():
    patches = group_patches(clouds(6), 8, 5)
    chosen = patches.select(torch.tensor([[7, 0], [3, 3]]))
    for name in ("neighborhoods", "centers", "center_index"):
        whole, some = getattr(patches, name), getattr(chosen, name)
        assert torch.equal(some, torch.stack([whole[0, [7, 0]], whole[1, [3, 3]]])), name
    kept = Patches(patches.neighborhoods, patches.centers, patches.center_index)  # without indices of the neighbors
    assert kept.select(torch.tensor([[7, 0], [3, 3]])).neighbor_index is None


def test_points_near_the_origin_are_skipped_on_request_only():
    points = clouds()
    points[:, 20:] *= 0.01
    sound, released = (group_patches(points, 25, 4, limit).center_index for limit in (None, 1e-3))
    assert sound[0].unique().numel() == 25
    # Once all candidates are taken, the released kernel repeats the first.
    assert set(released[0].tolist()) <= set(range(20)) and released[0].unique().numel() == 20


def test_as_many_points_as_centers_or_points_of_a_patch_are_enough():
    for groups, size in ((8, 5), (5, 8)):
        patches = group_patches(clouds()[:, :8], groups, size)
        assert patches.neighborhoods.shape == (2, groups, size, 3)
        with raises(ValueError, naming="expected 1 to 7"):
            group_patches(clouds()[:, :7], groups, size)
