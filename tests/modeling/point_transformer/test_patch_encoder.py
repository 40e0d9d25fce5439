"""The mini-PointNet against its formula, written out."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling import kernels
from hf_any3d.modeling.point_encoders.patches import PatchEncoder


def made(in_channels: int = 3, **changes) -> PatchEncoder:
    torch.manual_seed(0)
    encoder = PatchEncoder(in_channels, 24, (8, 12, 16), **changes)
    for name, tensor in encoder.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return encoder


def written_out(encoder: PatchEncoder, patches: torch.Tensor) -> torch.Tensor:
    """Run layer by layer, with the joined rows materialised."""

    def norm(layer: nn.BatchNorm1d, rows: torch.Tensor) -> torch.Tensor:
        return layer(rows.flatten(0, -2)).view_as(rows)

    own = encoder.widen(torch.relu(norm(encoder.lift_norm, encoder.lift(patches))))
    patch_max = own.amax(dim=2, keepdim=True).expand_as(own)
    joined = torch.relu(norm(encoder.join_norm, encoder.join(torch.cat([patch_max, own], dim=-1))))
    return encoder.out(joined).amax(dim=2)


def patches_of(channels: int) -> torch.Tensor:
    return torch.randn(2, 5, 6, channels, generator=torch.Generator().manual_seed(1))


def test_only_one_row_for_each_point_is_kept_in_training():
    encoder, patches, kept = made().train(), torch.randn(2, 50, 32, 3), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoder(patches).sum()
    rows = 2 * 50 * 32
    assert sum(kept.values()) < 4 * rows * (16 + 3) * 1.3


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels", [3, 6])
def test_evaluation_without_gradients_folds_the_norms(channels, bias):
    encoder, patches = made(channels, bias=bias).eval(), patches_of(channels)
    with torch.no_grad():
        assert kernels.pooled_patches.uses_fused(patches, encoder)
        found, expected = encoder(patches), written_out(encoder, patches)
    assert found.std() > 0.01
    torch.testing.assert_close(found, expected)
    # Whatever needs a gradient gets it.
    assert not kernels.pooled_patches.uses_fused(patches, encoder)
    assert kernels.pooled_patches.uses_fused(patches, encoder.requires_grad_(False))
    half_trained = made().train()
    half_trained.join_norm.eval()
    assert not kernels.pooled_patches.uses_fused(patches_of(3), half_trained)


def test_autocast_does_not_round_the_fused_rows():
    encoder, patches = made().train(), patches_of(3)
    expected = encoder(patches)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(patches)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize("training", [True, False])
def test_a_final_layer_maps_pooled_features_to_the_width(training):
    encoder = made(pooled_width=10).train(training)
    patches = torch.rand(2, 3, 5, 3)
    with torch.no_grad():
        expected = encoder.project(written_out(encoder, patches))
        found = encoder(patches)
    assert found.shape == (2, 3, 24)
    torch.testing.assert_close(found, expected)
    encoder(patches).sum().backward()
    assert encoder.project.weight.grad.any()
