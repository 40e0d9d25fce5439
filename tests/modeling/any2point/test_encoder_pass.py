"""Any2Point's pass through an encoder's layers against the encoder's own forward pass, on its own kind of input."""

import dataclasses

import pytest
import torch

from hf_any3d.modeling.any2point import modeling_any2point
from hf_any3d.modeling.any2point.point_tokenizer import PointTokens
from hf_any3d.modeling.any2point.virtual_projection import Projection
from hf_any3d.modeling.encoders import TokenPlaces, hidden_of
from tests.tiny_encoders import ENCODER_TYPES, tiny_model
from tests.turns import ALL_PAIRS

WORDS = 9
PIXELS = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SOUND = torch.rand(1, 56, 36, generator=torch.Generator().manual_seed(0))
INPUTS = {
    "text": {"input_ids": torch.arange(5, 5 + WORDS)[None]},
    "vision": {"pixel_values": PIXELS},
    "audio": {"input_values": SOUND[:, :, 0].repeat(1, 4)},
}
OWN_INPUTS = {
    "audio-spectrogram-transformer": {"input_values": SOUND},
    "imagebind_audio": {"input_values": SOUND.transpose(1, 2)[:, None]},
    "whisper": {"input_features": SOUND.flatten()[: 8 * 80].view(1, 8, 80)},
    "siglip2_vision_model": {
        "pixel_values": PIXELS.view(1, 16, -1),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]]),
    },
}
# Their own pass masks later words; a mask of zeros lets all words attend to each other, as point tokens do.
CAUSAL = {
    *("clip_text_model", "gpt2", "opt", "xglm", "llama", "mistral", "qwen2", "qwen3", "smollm3", "starcoder2"),
    *("stablelm", "gemma", "gemma2", "gemma3_text", "olmo2", "phi", "phi3", "gpt_neox"),
}


class OwnTokens(torch.nn.Module):
    """Replaces the tokenizer by the encoder's own embeddings."""

    def __init__(self, tokens):
        super().__init__()
        self.embed = torch.nn.Linear(3, 1)  # tells the model which precision points have
        self.tokens = tokens

    def forward(self, points):
        count = self.tokens.shape[1]
        return PointTokens(self.tokens, torch.rand(1, count, 3), torch.arange(count)[None])


def own_pass(core):
    """Return the input of the encoder's first norm or layer in its own pass, and the output of each layer."""
    family, encoder = core.family, core.encoder
    model_type = encoder.config.model_type
    first = family.norm_of(encoder, family.input_norm) or family.layers_of(encoder)[0]
    entered, left = [], []

    def enter(module, args, kwargs):
        entered.append(args[0] if args else kwargs["hidden_states"])

    hooks = [first.register_forward_pre_hook(enter, with_kwargs=True)]
    hooks += [
        layer.register_forward_hook(lambda m, a, out: left.append(hidden_of(out)))
        for layer in family.layers_of(encoder)
    ]
    inputs = OWN_INPUTS.get(model_type, INPUTS[family.tower])
    if model_type in CAUSAL:
        mask = torch.zeros(1, 1, WORDS, WORDS)
        if hasattr(encoder.config, "layer_types") and model_type in ("gemma2", "gemma3_text"):
            mask = dict.fromkeys(set(encoder.config.layer_types), mask)
        inputs = inputs | {"attention_mask": mask, "position_ids": torch.arange(WORDS)[None]}
    if model_type == "whisper":
        encoder.encoder(**inputs)
    else:
        encoder(**inputs)
    for hook in hooks:
        hook.remove()
    return entered[0], left


def own_places(core, count):
    """Places of words in order, or of patches row by row after a class token."""
    table = core.family.positions(core.encoder)
    if table.kind == "line":
        columns = table.columns or count
        return TokenPlaces(torch.arange(count).float().view(1, 1, -1, 1).expand(1, 6, -1, -1), 1, columns)
    row, column = torch.meshgrid(torch.arange(table.rows), torch.arange(table.columns), indexing="ij")
    entry = torch.stack([column, row], dim=-1).reshape(1, 1, -1, 2).float().expand(1, 6, -1, -1)
    return TokenPlaces.with_class_token(entry, table.rows, table.columns)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("model_type", list(ENCODER_TYPES)[:: 1 if ALL_PAIRS else 2])
def test_layers_get_the_inputs_of_the_encoders_own_forward_pass(model_type, monkeypatch):
    core = tiny_model(model_type, rotary_views="mean_angle").any2point
    entered, own = own_pass(core)

    # The class token first, then the tokens; the embeddings include positions already.
    core.class_token.token.copy_(entered[0, 0])
    core.class_token.position.zero_()
    core.point_tokenizer = OwnTokens(entered[:, 1:])
    core.family = dataclasses.replace(core.family, line_convolution=None)
    count = entered.shape[1]
    nowhere = Projection(torch.zeros(1, 6, count - 1, 1), (1.0,), 1.0, None, own_places(core, count))
    monkeypatch.setattr(modeling_any2point, "project", lambda *args: nowhere)
    ours = []
    for layer in core.family.layers_of(core.encoder):
        layer.register_forward_hook(lambda module, args, out: ours.append(hidden_of(out)))
    output = core(torch.zeros(1, 48, 3))

    assert len(own) == len(ours) == core.encoder.config.num_hidden_layers
    for expected, found in zip(own, ours, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    norm = core.family.norm_of(core.encoder, core.family.final_norm) or core.output_norm
    torch.testing.assert_close(output.last_hidden_state, norm(own[-1]), rtol=1e-5, atol=2e-5)
