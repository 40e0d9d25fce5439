"""Every registered encoder family as a teacher."""

import pytest
import torch

from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_encoders import ENCODER_TYPES, clouds
from tests.turns import ALL_PAIRS

# One for each kind of positions and of layers.
SOME_FAMILIES = ("bert", "clip_vision_model", "gpt2", "t5", "deberta-v2", "llama", "vit", "beit", "wav2vec2", "wavlm")
# Any2Point's tests of places try all families, whose layers run in the same way here.
some_families = pytest.mark.parametrize("family", list(ENCODER_TYPES) if ALL_PAIRS else SOME_FAMILIES)
# Biases before a batch norm, which cancels them.
CANCELED = ("lift.bias", "join.bias", "decoder.widen.bias", "patch_encoder.widen.bias")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "depth"),
    [(family, "deep") for family in (ENCODER_TYPES if ALL_PAIRS else SOME_FAMILIES)]
    + [(family, "shallow") for family in (SOME_FAMILIES if ALL_PAIRS else SOME_FAMILIES[::3])],
)
def test_a_training_step_trains_all_but_the_teacher(family, depth):
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
            assert parameter.grad.abs().max() > 0 or name.endswith(CANCELED), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())


@pytest.mark.slow
@some_families
def test_the_teacher_does_not_depend_on_the_order_of_tokens(family):
    model = tiny_autoencoder(family, num_prompts=2)
    torch.manual_seed(0)
    codes, centers = torch.randn(2, 6, 16), torch.randn(2, 6, 3)
    order = torch.randperm(6)
    with torch.no_grad():
        output, permuted = model.teach(codes, centers), model.teach(codes[:, order], centers[:, order])
        moved = model.teach(codes, centers + 0.5)
    torch.testing.assert_close(permuted, output[:, order], rtol=1e-4, atol=1e-4)
    assert (moved - output).abs().max() > 1e-4
