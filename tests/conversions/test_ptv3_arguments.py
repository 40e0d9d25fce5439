"""The layouts of sparse convolutions."""

import pytest
import torch

from hf_any3d.conversions.point_transformer_v3.names import convert_supervised_state_dict


@pytest.mark.parametrize(
    ("shape", "is_old"),
    [
        ((3, 3, 3, 6, 9), True),
        ((5, 5, 5, 6, 9), True),
        ((9, 3, 3, 3, 6), False),
        ((9, 5, 5, 5, 6), False),
        ((3, 3, 3, 3, 9), False),
        ((3, 3, 4, 6, 9), False),
        ((9, 9, 3, 3, 6), False),
    ],
)
def test_kernels_of_an_older_layout_are_turned(shape, is_old):
    weight = torch.arange(float(torch.Size(shape).numel())).view(shape)
    state = convert_supervised_state_dict({"backbone.embedding.stem.conv.weight": weight}, {})
    found = state["point_transformer_v3.embeddings.convolution.weight"]
    assert found.is_contiguous()
    if is_old:
        x, y, z, inner, outer = 0, 1, 2, 4, 7
        assert found.shape == (9, *shape[:3], 6) and found[outer, x, y, z, inner] == weight[x, y, z, inner, outer]
        assert torch.equal(found[outer], weight[..., outer])
    else:
        assert torch.equal(found, weight)
