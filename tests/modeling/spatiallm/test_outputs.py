"""What SpatialLM returns, compared with its parts run by hand, and what its config says."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling.spatiallm.modeling_spatiallm import FourierPositions
from tests.common.case import spread_weights
from tests.tiny_spatiallm import prompts, tiny_spatiallm


@pytest.fixture(scope="module")
def model():
    made = tiny_spatiallm()
    made.set_attn_implementation("eager")
    spread_weights(made)
    return made.eval()


def same(ours, theirs) -> bool:
    if isinstance(ours, torch.Tensor):
        ours, theirs = (ours,), (theirs,)
    return len(ours) == len(theirs) > 0 and all(map(torch.equal, ours, theirs))


@torch.no_grad()
def test_tokens_of_clouds_are_those_of_the_encoder_with_their_cells(model):
    given = prompts(2)
    clouds, cells = given["points"], given["grid_coord"]
    mask = torch.ones(clouds.shape[:2], dtype=torch.bool)
    mask[1, 9:] = False
    body = model.spatiallm
    encoded = body.point_encoder(clouds, point_mask=mask, grid_coord=cells)
    positions = FourierPositions(model.config.fourier_resolution)(encoded.grid_coord)
    joined = body.input_projection(torch.cat([encoded.last_hidden_state, positions], dim=1))
    end = int(encoded.offsets[0])
    contexts = body.encode(clouds, cells, mask)
    assert same(contexts, (joined[:end], joined[end:])) and len(joined) > end
    first, activation, second = body.projector
    assert isinstance(activation, nn.GELU) and first.out_features == first.in_features == 24
    features = second(nn.functional.gelu(first(joined)))
    for one in (body, model):
        own = one.get_point_features(clouds, cells, mask)
        for ours, theirs in zip(own, features.split([end, len(joined) - end]), strict=True):
            torch.testing.assert_close(ours, theirs)
    linear = tiny_spatiallm(projector="linear").spatiallm.projector
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(24, 16)]


@torch.no_grad()
def test_the_loss_is_the_mean_over_next_tokens(model):
    inputs = prompts(2)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] > 23, -100)
    output = model(**inputs, labels=labels)
    logs = output.logits.log_softmax(dim=-1)
    losses = [
        -logs[row, place, labels[row, place + 1]]
        for row in range(2)
        for place in range(labels.shape[1] - 1)
        if labels[row, place + 1] != -100
    ]
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(**inputs, shift_labels=shifted).loss, output.loss)
    parts = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(50))
    torch.testing.assert_close(parts.loss, torch.stack(losses).sum() / 50)
