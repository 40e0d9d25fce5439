"""Our way through an encoder's layers against the encoder's own forward pass, on what it was made for."""

import pytest
import torch

from hf_any3d.modeling.any2point import modeling_any2point
from hf_any3d.modeling.any2point.point_tokenizer import PointTokens
from hf_any3d.modeling.any2point.virtual_projection import Projection
from hf_any3d.modeling.encoders import encoder_families
from tests.tiny_encoders import HIDDEN, tiny_model

INPUTS = {
    "text": {"input_ids": torch.arange(5, 14)[None]},
    "vision": {"pixel_values": torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))},
    "audio": {"input_values": torch.rand(1, 56, 36, generator=torch.Generator().manual_seed(0))},
    "imagebind_audio": {"input_values": torch.rand(1, 1, 36, 56, generator=torch.Generator().manual_seed(0))},
}


class OwnTokens(torch.nn.Module):
    """Stands where the tokenizer stands and hands out what the encoder's own embeddings are."""

    def __init__(self, tokens):
        super().__init__()
        self.embed = torch.nn.Linear(3, 1)  # tells the model which precision points have
        self.tokens = tokens

    def forward(self, points):
        count = self.tokens.shape[1]
        return PointTokens(self.tokens, torch.rand(1, count, 3), torch.arange(count)[None])


@torch.no_grad()
@pytest.mark.parametrize("model_type", list(encoder_families()))
def test_layers_see_what_the_encoders_own_pass_shows_them(model_type, monkeypatch):
    core = tiny_model(model_type).any2point
    family, encoder = core.family, core.encoder
    first = family.norm_of(encoder, family.input_norm) or family.layers_of(encoder)[0]
    entered, own, ours = [], [], []
    hook = first.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    hooks = [layer.register_forward_hook(lambda m, a, out: own.append(out)) for layer in family.layers_of(encoder)]
    encoder(**INPUTS.get(model_type, INPUTS[family.tower]))
    for registered in (hook, *hooks):
        registered.remove()

    # The class token in front, all else as tokens; positions are in the embeddings already.
    core.class_token.token.copy_(entered[0][0, 0])
    core.class_token.position.zero_()
    core.point_tokenizer = OwnTokens(entered[0][:, 1:])
    count = entered[0].shape[1] - 1
    nowhere = Projection(torch.zeros(1, 6, count, 1), (1.0,), 1.0, torch.zeros(1, count, HIDDEN))
    monkeypatch.setattr(modeling_any2point, "project", lambda *args: nowhere)
    for layer in family.layers_of(encoder):
        layer.register_forward_hook(lambda module, args, out: ours.append(out))
    output = core(torch.zeros(1, 48, 3))

    if model_type == "clip_text_model":
        # Its own pass is causal, so only the last word of the first layer sees as much as our tokens do.
        own, ours = [own[0][:, -1]], [ours[0][:, -1]]
    for expected, found in zip(own, ours, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    norm = family.norm_of(encoder, family.final_norm) or torch.nn.LayerNorm(HIDDEN)
    if model_type != "clip_text_model":
        torch.testing.assert_close(output.last_hidden_state, norm(own[-1]), rtol=1e-5, atol=1e-5)
