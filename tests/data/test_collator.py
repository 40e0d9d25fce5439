import numpy as np
import pytest
import torch

from hf_any3d.data.collator import PointCloudCollator
from hf_any3d.data.transforms import Jitter
from hf_any3d.modeling.point_ops import LARGEST_COORDINATE


def cloud(num_points, channels=3, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (num_points, channels)).astype(np.float32)


def rows(*sizes, channels=3):
    return [{"points": cloud(size, channels, seed), "label": seed} for seed, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("labels", "kind"),
    [([2, 0], torch.int64), ([0.5, 2], torch.float32), ([[0, 1, 1], [1, 0, 0]], torch.float32),
     ([[0.5, -1.0], [2.0, 3.0]], torch.float32)],
)  # fmt: skip
def test_labels_are_those_of_the_kinds_of_problems(labels, kind):
    batch = PointCloudCollator(num_points=8)([{"points": cloud(9), "labels": one} for one in labels])
    assert batch["labels"].dtype == kind and batch["labels"].tolist() == labels


def test_without_num_points_clouds_of_different_sizes_are_refused():
    """Padded to the largest one, a cloud's prediction would depend on its batch."""
    with pytest.raises(ValueError):
        PointCloudCollator()(rows(30, 10))


@pytest.mark.parametrize("seed", [None, 3])
def test_a_cloud_does_not_depend_on_its_batch(seed):
    given = rows(30, 10, 100)
    collate = PointCloudCollator(num_points=24, seed=seed)
    alone = torch.cat([collate([row])["points"] for row in given])
    assert torch.equal(collate(given)["points"], alone)


def test_evaluation_takes_the_first_points():
    given = rows(100)
    points = PointCloudCollator(num_points=16)(given)["points"].numpy()
    np.testing.assert_array_equal(points[0], given[0]["points"][:16])


def test_training_samples_and_transforms_follow_torch_seed():
    collate = PointCloudCollator(num_points=16, transform=Jitter())
    given = rows(100, 100)
    torch.manual_seed(0)
    first, second = collate(given)["points"], collate(given)["points"]
    torch.manual_seed(0)
    assert torch.equal(collate(given)["points"], first)
    assert not torch.equal(first, second)


def test_extra_columns_become_channels_and_integer_colors_are_scaled_to_0_to_1():
    row = {"points": cloud(8), "normals": cloud(8, seed=1), "colors": np.full((8, 3), 255, np.uint8)}
    points = PointCloudCollator(extra_columns=("normals", "colors"))([row])["points"]
    assert points.shape == (1, 8, 9)
    np.testing.assert_array_equal(points[0, :, 3:6].numpy(), row["normals"])
    assert (points[0, :, 6:] == 1).all()


def test_nested_lists_tensors_and_half_precision_are_accepted():
    points = cloud(4)
    for given in (points.tolist(), torch.from_numpy(points), points.astype(np.float16)):
        batch = PointCloudCollator()([{"points": given}])
        np.testing.assert_allclose(batch["points"][0].numpy(), points, atol=1e-3)
        assert "labels" not in batch


def test_the_largest_coordinate_is_taken_and_a_larger_one_refused():
    points = np.array([[0, 0, 0], [0, -LARGEST_COORDINATE, 0]], dtype=np.float32)
    larger = np.nextafter(np.abs(points).max(), np.inf, dtype=np.float32)
    assert PointCloudCollator()([{"points": points}])["points"].abs().max() == float(np.abs(points).max())
    with pytest.raises(ValueError, match="expected at most"):
        PointCloudCollator()([{"points": np.where(points < 0, larger, points)}])
