"""Distances of clouds with masks, against loops over points, and the words in which arguments are refused."""

import pytest
import torch

from hf_any3d.modeling.point_ops import chamfer_distance, reconstruction_scores
from tests.errors import raises


def case() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 9, 4, generator=generator), torch.rand(2, 7, 3, generator=generator)
    x[1, 4, :3] = torch.tensor([1.0, -1, 0])  # sums to zero
    y[0, 2] = 0
    x_mask, y_mask = torch.rand(2, 9, generator=generator) < 0.7, torch.rand(2, 7, generator=generator) < 0.7
    x_mask[1, 4] = y_mask[0, 2] = True
    return {"x": x, "y": y, "x_mask": x_mask, "y_mask": y_mask}


def scores_in_loops(x, y, x_mask, y_mask, threshold: float, drop_zero_sums: bool) -> dict[str, list[float]]:
    scores = {"chamfer_l1": [], "chamfer_l2": [], "f_score": []}
    for number in range(len(x)):
        sides = []
        for points, mask in ((x, x_mask), (y, y_mask)):
            own = points[number, :, :3].double()
            kept = [
                bool(mask[number, row]) and not (drop_zero_sums and own[row].sum() == 0) for row in range(len(own))
            ]
            sides.append(own[torch.tensor(kept)])
        distances = torch.cdist(*sides)
        there, back = distances.amin(dim=1), distances.amin(dim=0)
        scores["chamfer_l1"].append(float(there.mean() + back.mean()) / 2)
        scores["chamfer_l2"].append(float(there.square().mean() + back.square().mean()))
        precision, recall = float((there < threshold).double().mean()), float((back < threshold).double().mean())
        scores["f_score"].append(2 * precision * recall / max(precision + recall, 1e-300))
    return scores


@pytest.mark.parametrize("drop_zero_sums", [False, True])
@pytest.mark.parametrize("threshold", [0.15, 0.3])
def test_scores_of_masked_clouds_are_those_of_loops(drop_zero_sums, threshold):
    given = case()
    expected = scores_in_loops(**given, threshold=threshold, drop_zero_sums=drop_zero_sums)
    found = reconstruction_scores(**given, threshold=threshold, drop_zero_sums=drop_zero_sums)
    assert list(found) == ["chamfer_l1", "chamfer_l2", "f_score"]
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(values), rtol=1e-5, atol=1e-6)
        assert not found[name].requires_grad
    for norm in ("l1", "l2"):
        each = chamfer_distance(**given, norm=norm, reduction="none", drop_zero_sums=drop_zero_sums)
        torch.testing.assert_close(each, found[f"chamfer_{norm}"])
        mean = chamfer_distance(**given, norm=norm, drop_zero_sums=drop_zero_sums)
        torch.testing.assert_close(mean, each.mean())


@pytest.mark.parametrize("name", ["x", "y"])
def test_scores_of_clouds_with_nan_are_refused_unless_masked(name):
    given = {"x": torch.ones(2, 5, 3), "y": torch.ones(2, 4, 3)}
    given[name][1, 2, 1] = float("nan")
    with raises(ValueError, naming=f"{name}: found NaN"):
        reconstruction_scores(**given)
    mask = ~given[name].isnan().any(dim=2)
    assert reconstruction_scores(**given, **{f"{name}_mask": mask})["f_score"].tolist() == [1, 1]
