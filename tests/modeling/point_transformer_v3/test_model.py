"""Tests of Point Transformer V3 with lists, masks, chance, samples and errors."""

import pytest
import torch

from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3ForPointCloudClassification,
    PointTransformerV3ForPointCloudSegmentation,
    PointTransformerV3Model,
)
from tests.common.case import spread_weights, varied_clouds
from tests.errors import raises
from tests.tiny_ptv3 import tiny_ptv3


def tiny(model_class=PointTransformerV3Model, **settings):
    model = tiny_ptv3(model_class, **settings)
    spread_weights(model)
    return model


def different(sizes: tuple[int, ...] = (40, 90, 7)) -> list[torch.Tensor]:
    """Clouds of different sizes."""
    return [varied_clouds(1, size, 6, seed)[0] for seed, size in enumerate(sizes)]


def padded(clouds: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    points = torch.nn.utils.rnn.pad_sequence(clouds, batch_first=True, padding_value=torch.nan)
    return {"points": points, "point_mask": ~points[..., 0].isnan()}


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"rope_theta": 10.0, "hidden_sizes": (12, 24)}, {"patch_sizes": (16, 4)}])
def test_lists_and_filled_up_batches_give_the_features_of_single_clouds(settings):
    model, clouds = tiny(**settings), different()
    alone = [model(cloud[None], output_point_features=True) for cloud in clouds]
    for given in ({"points": clouds}, padded(clouds)):
        together = model(**given, output_point_features=True)
        torch.testing.assert_close(together.pooler_output, torch.cat([one.pooler_output for one in alone]))
        for own, one in zip(together.point_features, alone, strict=True):
            count = one.point_features.shape[1]
            torch.testing.assert_close(own[:count], one.point_features[0], rtol=1e-4, atol=1e-5)
            assert not own[count:].any()


@torch.no_grad()
def test_flags_of_the_released_programs_make_results_depend_on_the_batch():
    clouds = different((200, 5))
    clouds[1] = clouds[1] * 9
    for flag, curves in (("depth_of_batch", ["hilbert"]), ("equal_patches", ["z"])):
        for value in (False, True):
            model = tiny(curves=curves, patch_sizes=(16, 16), **{flag: value})
            alone, together = model(clouds[:1]).pooler_output, model(clouds).pooler_output[:1]
            assert torch.allclose(alone, together, atol=1e-5) != value
        assert model.config.batch_dependent_flags == [flag]


@pytest.mark.slow
@torch.no_grad()
def test_curves_are_shuffled_in_training_or_always_or_never():
    clouds = different((150,))
    for when, in_training, in_eval in (("training", True, False), ("always", True, True), ("never", False, False)):
        model = tiny(shuffle_curves=when, patch_sizes=(16, 16), drop_path_rate=0.0)
        for mode, expected in ((True, in_training), (False, in_eval)):
            torch.manual_seed(0)
            found = {round(float(model.train(mode)(clouds).pooler_output.sum()), 4) for _ in range(4)}
            assert (len(found) > 1) == expected, (when, mode)


@torch.no_grad()
def test_points_that_share_a_cell_share_their_features():
    model, cloud = tiny(), different((60,))[0]
    twins = torch.cat([cloud, cloud + torch.tensor([1e-4, 0, 0, 0, 0, 0])])
    found = model(twins[None], output_point_features=True)
    assert int(found.offsets[-1]) <= 60 and found.point_features.shape == (1, 120, 40)
    grid = (cloud[:, :3].double() / 0.05).floor() - (twins[:, :3].double() / 0.05).floor().amin(0)
    single = torch.unique(grid, dim=0)
    assert len(single) <= 60


@torch.no_grad()
def test_masked_voxels_get_the_mask_token():
    model = tiny(use_mask_token=True, curves=["z"])
    cloud = different((50,))[0]
    grid = torch.arange(50)[:, None] * torch.tensor([1, 0, 0])
    changed = cloud.clone()
    changed[::2, 3:] = 0.7
    mask = torch.arange(50)[None] % 2 == 0
    given = {"grid_coord": grid[None], "bool_masked_pos": mask}
    assert torch.equal(model(cloud[None], **given)[0], model(changed[None], **given)[0])
    with pytest.raises(AttributeError):  # without a token
        tiny()(cloud[None], **given)
    with raises(ValueError, naming="bool_masked_pos"):
        model(cloud[None], bool_masked_pos=mask)


def test_decoder_gives_features_of_the_finest_voxels_and_trains_alone():
    decoder = {"use_decoder": True, "decoder_depths": (2,), "decoder_hidden_sizes": (18,)}
    model = tiny(
        PointTransformerV3ForPointCloudSegmentation, **decoder, decoder_num_attention_heads=(3,), freeze_encoder=True
    )
    clouds = varied_clouds(2, 40, 6)
    output = model(clouds, labels=torch.zeros(2, 40, dtype=torch.long), output_hidden_states=True)
    assert output.logits.shape == (2, 40, 3)
    assert [state.shape[1] for state in output.hidden_states] == [16, 16, 24, 24, 18, 18]
    output.loss.backward()
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"unpoolings", "decoder_blocks", "out"}
    assert model.point_transformer_v3(clouds).last_hidden_state.shape[1] == model.config.hidden_size == 18


def test_options_compute_and_train_in_training_mode():
    model = tiny(
        PointTransformerV3ForPointCloudClassification,
        rope_theta=10.0,
        rope_shift=0.1,
        rope_jitter=1.1,
        rope_rescale=1.2,
        hidden_sizes=(12, 24),
        layer_scale_init_value=0.1,
        pre_norm=False,
        upcast_attention=True,
        qkv_bias=False,
    ).train()
    clouds, labels = varied_clouds(4, 40, 6), torch.arange(4) % 3
    output = model(clouds, labels=labels)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    first, second = (model.point_transformer_v3(clouds).pooler_output for _ in range(2))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(2, 9, 5)}, r"expected \(batch, points, 6\)"),
        ({"points": [torch.zeros(3, 6), torch.zeros(0, 6)]}, "1 or more points"),
        ({"point_mask": torch.ones(2, 8, dtype=torch.bool)}, "must match the size"),
        ({"point_mask": torch.zeros(2, 9, dtype=torch.bool)}, "cloud 0 has no points"),
        ({"grid_coord": torch.zeros(2, 9, 3)}, "a cell occurs twice in a cloud"),
        ({"grid_coord": torch.zeros(2, 8, 3)}, "shape of the mask"),
        ({"inverse": torch.full((2, 12), 9)}, r"inverse has shape \(2, 12\) and numbers up to 9; expected \(2, orig"),
        ({"points": varied_clouds(2, 9, 6) * 1e6}, "use a larger grid_size, or scale the cloud down"),
    ],
)
def test_bad_inputs_are_named(change, message):
    with pytest.raises((ValueError, IndexError, RuntimeError), match=message):
        tiny()(**{"points": varied_clouds(2, 9, 6)} | change)


def test_relative_positions_need_an_attention_that_adds_them():
    model = tiny(relative_position_bias=True)
    model.config._attn_implementation = "flex_attention"
    with raises(ValueError, naming="relative_position_bias"):
        model(varied_clouds(1, 9, 6))
