"""Every setting of the point transformer and its heads has its effect; requested outputs; masked pretraining."""

import re

import pytest
import torch
from torch import nn

from hf_any3d import OpenShapeModel, PatchAlign3DModel, PointTransformerV3Model, Uni3DModel
from hf_any3d.modeling.act import (
    ActForPreTraining,
    ActForSemanticSegmentation,
    ActModel,
)
from hf_any3d.modeling.act.codebook import gumbel_noise
from hf_any3d.modeling.point_encoders.point_transformer import GRIDS, group_patches
from tests.modeling.act.test_pretraining import GROUPS, STUDENT, masks, tiny_pretraining
from tests.tiny_act import clouds, tiny_act
from tests.tiny_aligned import tiny_aligned
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_encoders import clouds as pretraining_clouds
from tests.tiny_ptv3 import tiny_ptv3


@torch.no_grad()
def test_outputs_of_chosen_blocks_come_in_their_order_beside_all_states():
    for model_class in (ActModel, OpenShapeModel, PatchAlign3DModel, Uni3DModel):
        model = tiny_act(model_class) if model_class is ActModel else tiny_aligned(model_class)
        points = clouds(channels=model.config.in_channels)
        output = model(points, output_layers=(2, 0), output_hidden_states=True)
        assert len(output.hidden_states) == 4 and len(output.layer_outputs) == 2
        assert torch.equal(output.layer_outputs[0], output.hidden_states[3])
        assert torch.equal(output.layer_outputs[1], output.hidden_states[1])
        assert torch.equal(model.norm(output.hidden_states[3]), output.last_hidden_state)
        alone = model(points, output_layers=[1])
        assert alone.hidden_states is None and len(alone.layer_outputs) == 1
        assert torch.equal(alone.layer_outputs[0], output.hidden_states[2])
        assert model(points, output_hidden_states=True).layer_outputs is None
        assert alone.attentions is None and alone.get("added_tokens") is None


class Guided(nn.Module):
    """Stands for an adapter around a block that reads where the tokens are."""

    takes_geometry = True

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, hidden_states, positions=None, geometry=None):
        self.geometry = geometry
        return self.block(hidden_states, positions)


@torch.no_grad()
def test_adapters_around_blocks_get_the_places_of_tokens():
    students = ((ActModel, {}, 1), (ActModel, {"use_class_token": False}, 0))
    for model_class, settings, special in (*students, (Uni3DModel, {}, 1), (PatchAlign3DModel, {}, 1)):
        model = (tiny_act if model_class is ActModel else tiny_aligned)(model_class, **settings)
        points = clouds(channels=model.config.in_channels)
        plain = model(points)
        model.blocks.layers[1] = guided = Guided(model.blocks.layers[1])
        output = model(points)
        assert torch.equal(output.last_hidden_state, plain.last_hidden_state)
        geometry = guided.geometry
        assert geometry.cell_size == pytest.approx(4 / 12**0.5) and geometry.special_tokens == special
        assert torch.equal(geometry.given_centers, output.centers)
        stack = model.layer_stack
        assert stack.layers is model.blocks.layers and (stack.path, stack.branch) == ("blocks.layers", "mlp")
        assert (stack.hidden_size, stack.views, stack.is_open, stack.final_norm) == (24, GRIDS, True, "norm")
        assert {name for name, _ in model.named_children()} <= set(stack.pretrained)
        if model_class is ActModel:
            tokens, places = geometry.embed_patches(5, 4)
            patches = group_patches(points, 5, 4)
            torch.testing.assert_close(tokens, model.patch_encoder(patches.neighborhoods))
            torch.testing.assert_close(places, model.position_embed(patches.centers))


def test_poolings_of_prompts_need_an_adapter():
    model = tiny_act(ActModel, pooling=("cls", "prompt_max"))
    message = "pooling=['cls', 'prompt_max']: there are no prompts, as no adapter leaves tokens behind the last block"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(clouds())
    message = "segmentation_pooling='prompts': the adapters do not leave one prompt, before and after the block, at "
    with pytest.raises(ValueError, match=re.escape(message + "each of the blocks [0, 2]; expected IDPTConfig(")):
        tiny_act(ActForSemanticSegmentation, segmentation_pooling="prompts")(clouds())
    # Models without a class token pool what is left, or the maximum.
    for pooling, expected in ((("cls",), "amax"), (("cls", "mean"), "mean"), (("prompt_max", "max"), "amax")):
        output = tiny_act(ActModel, pooling=pooling, use_class_token=False)(clouds())
        torch.testing.assert_close(output.pooler_output, getattr(output.last_hidden_state, expected)(dim=1))


@torch.no_grad()
def test_targets_are_those_of_given_or_drawn_noise():
    points, mask = pretraining_clouds(), masks()
    noise = torch.randn(3, GROUPS, 12, generator=torch.Generator().manual_seed(0)) * 9

    def chosen(model, given):
        return model.autoencoder.teacher_features(points, noise=given)[mask].view(3, 6, 16)

    model = tiny_pretraining()
    found = model(points, mask, noise=noise)
    torch.testing.assert_close(found.targets, chosen(model, noise))
    assert not torch.allclose(found.targets, chosen(model, torch.zeros(1)), atol=1e-3)
    assert found.loss > 0 and model(points, mask, return_loss=False).loss is None
    assert torch.equal(found.mask, mask) and found.class_token_predictions is None
    noisy = tiny_pretraining(noisy_targets=True)
    torch.manual_seed(4)
    targets = noisy(points, mask).targets
    torch.manual_seed(4)
    torch.testing.assert_close(targets, chosen(noisy, gumbel_noise(torch.zeros(3, GROUPS, 12))))
    # An autoencoder that draws noise by itself is kept from it.
    model.autoencoder.config.noise_in_eval = True
    torch.testing.assert_close(model(points, mask).targets, chosen(model, torch.zeros(1)))


def test_a_student_takes_the_patches_of_its_teacher():
    teacher = {"num_groups": 5, "group_size": 8, "in_channels": 4, "sampling_min_squared_norm": 1e-4}
    autoencoder = tiny_autoencoder(None, **teacher)
    made = ActForPreTraining.from_autoencoder_pretrained(autoencoder, **STUDENT)
    assert {name: getattr(made.config, name) for name in teacher} == teacher
    assert (
        not made.training and made.autoencoder is autoencoder and made.config.autoencoder_config is autoencoder.config
    )
    changed = ActForPreTraining.from_autoencoder_pretrained(autoencoder, sampling_min_squared_norm=None, **STUDENT)
    assert changed.config.sampling_min_squared_norm is None
    for name in ("num_groups", "group_size", "in_channels"):
        value = teacher[name]
        message = f"{name}={value + 4}; expected {value}, the autoencoder's value"
        with pytest.raises(ValueError, match=re.escape(message)):
            ActForPreTraining.from_autoencoder_pretrained(autoencoder, **{name: value + 4}, **STUDENT)


@torch.no_grad()
def test_students_of_every_kind_return_states_and_weights_and_ignore_return_dict_inside():
    autoencoder, mask = tiny_autoencoder(None), torch.tensor([[1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 1, 1]]).bool()
    voxels = tiny_ptv3(PointTransformerV3Model, shuffle_curves="never")
    for source in (None, tiny_aligned(Uni3DModel, num_groups=6), voxels):
        own = STUDENT if source is None else {"decoder_num_hidden_layers": 1}
        model = ActForPreTraining.from_autoencoder_pretrained(autoencoder, source, **own)
        (model if source is None else model.act).set_attn_implementation("eager")
        if source is not None:
            # A choice that was made after nesting the config is kept.
            model = ActForPreTraining(model.config, autoencoder, source).eval()
        assert model.act.config._attn_implementation == "eager"
        points = clouds(channels=model.config.in_channels)
        expected = model(points, mask, output_attentions=True, output_hidden_states=True)
        assert len(expected.attentions) == 3 and len(expected.hidden_states) == 4
        features = model.probe_features(points)
        model.act.config.return_dict = False
        found = model(points, mask, return_dict=True)
        assert torch.equal(found.loss, expected.loss) and found.attentions is found.hidden_states is None
        assert torch.equal(model.probe_features(points), features)
