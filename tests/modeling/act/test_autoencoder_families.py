"""Every registered encoder family as a teacher."""

import pytest
import torch

from hf_any3d.modeling.encoders import encoder_families
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_encoders import clouds

# One for each way to tell places and each shape of layers.
SOME_FAMILIES = ("bert", "clip_vision_model", "gpt2", "t5", "deberta-v2", "llama", "vit", "beit", "wav2vec2", "wavlm")
every_family = pytest.mark.parametrize("family", list(encoder_families()))
# Biases in front of a batch norm, which takes them out again: nothing depends on them.
TAKEN_OUT = ("lift.bias", "join.bias", "decoder.widen.bias", "patch_encoder.widen.bias")


@pytest.mark.parametrize(
    ("family", "depth"),
    [(family, "deep") for family in encoder_families()] + [(family, "shallow") for family in SOME_FAMILIES],
)
def test_a_training_step_reaches_all_but_the_teacher(family, depth):
    model = tiny_autoencoder(family, prompt_depth=depth).train()
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    output = model(clouds(2), kl_weight=0.1)
    output.loss.backward()
    assert output.fine.shape == (2, 6, 8, 3) and output.whole_coarse.shape == (2, 12, 3)
    for name, parameter in model.named_parameters():
        if name.startswith("encoder."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0 or name.endswith(TAKEN_OUT), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())


@every_family
def test_the_order_of_tokens_means_nothing_to_a_teacher(family):
    model = tiny_autoencoder(family, num_prompts=2)
    torch.manual_seed(0)
    codes, centers = torch.randn(2, 6, 16), torch.randn(2, 6, 3)
    order = torch.randperm(6)
    with torch.no_grad():
        read, turned = model.teach(codes, centers), model.teach(codes[:, order], centers[:, order])
        moved = model.teach(codes, centers + 0.5)
    torch.testing.assert_close(turned, read[:, order], rtol=1e-4, atol=1e-4)
    assert (moved - read).abs().max() > 1e-4


@every_family
def test_every_prompt_and_every_token_is_heard_by_every_token(family):
    model = tiny_autoencoder(family)
    codes = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = model.teach(codes, torch.zeros(1, 6, 3))
    for token in range(6):
        of_codes, of_prompts = torch.autograd.grad(
            out[0, token].sum(), (codes, model.prompts.tokens), retain_graph=True
        )
        assert (of_codes[0].abs().amax(dim=-1) > 0).all(), token
        assert (of_prompts.abs().amax(dim=-1) > 0).all(), token
