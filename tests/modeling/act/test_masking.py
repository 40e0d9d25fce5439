"""Random and block masks of patches."""

import pytest
import torch

from hf_any3d.modeling.act.masking import MASKS, random_mask, split_by_mask

CENTERS = torch.rand(3, 20, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("num_masked", [0, 7, 20])
def test_every_cloud_hides_the_same_number(kind, num_masked):
    assert MASKS[kind](CENTERS, num_masked).sum(dim=1).tolist() == [num_masked] * 3


def test_random_masks_hide_every_patch_equally_often():
    shares = random_mask(torch.zeros(4000, 20, 3), 15, torch.Generator().manual_seed(0)).float().mean(dim=0)
    assert (shares - 0.75).abs().max() < 0.03


def test_visible_and_hidden_patches_keep_their_order():
    mask = random_mask(CENTERS, 7)
    visible, hidden = split_by_mask(mask)
    for row, seen, unseen in zip(mask, visible, hidden, strict=True):
        assert torch.equal(seen, (~row).nonzero().squeeze(1))
        assert torch.equal(unseen, row.nonzero().squeeze(1))


def test_unequal_rows_are_refused():
    with pytest.raises(ValueError, match=r"hides \[1, 2\] patches.*equal numbers"):
        split_by_mask(torch.tensor([[True, False, False], [True, True, False]]))
