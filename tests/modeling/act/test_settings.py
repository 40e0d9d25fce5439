"""Every setting of the point transformer and its heads has its effect; requested outputs; masked pretraining."""

import re

import pytest
import torch

from hf_any3d import PointTransformerV3Model, Uni3DModel
from hf_any3d.modeling.act import ActForPreTraining, ActForSemanticSegmentation, ActModel
from hf_any3d.modeling.act.codebook import gumbel_noise
from tests.modeling.act.test_pretraining import GROUPS, STUDENT, masks, tiny_pretraining
from tests.tiny_act import clouds, tiny_act
from tests.tiny_aligned import tiny_aligned
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_encoders import clouds as pretraining_clouds
from tests.tiny_ptv3 import tiny_ptv3


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
    model.autoencoder.config.released.noise_in_eval = True
    torch.testing.assert_close(model(points, mask).targets, chosen(model, torch.zeros(1)))


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
