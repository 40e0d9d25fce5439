"""What a model of tokens needs for the PEFT methods of this package."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel

from hf_any3d import ActForPointCloudClassification, GuidedAdapterConfig
from hf_any3d.modeling.layers.adapted_layers import AdaptedLayer, LayerStack, enter_layer
from hf_any3d.modeling.point_encoders.point_transformer import TokenGrids
from hf_any3d.modeling.point_ops.geometry import GRIDS
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_encoders import clouds


class Layer(nn.TransformerEncoderLayer):
    """A layer of torch, whose last linear layer is the branch."""

    def __init__(self):
        super().__init__(24, 2, 48, dropout=0.0, batch_first=True)
        self.linear2 = nn.Sequential(self.linear2)  # a module that is called, so that torch takes no fused form


class Transformer(nn.Module):
    """A stranger's model: points are tokens, and their own centers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 24)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(24, 2)

    @property
    def layer_stack(self):
        return LayerStack(self.layers, "layers", "linear2", 24, GRIDS, pretrained=("layers",))

    def forward(self, points):
        geometry = TokenGrids.around(points, cell_size=0.5, special_tokens=0)
        tokens = self.embed(points)
        for layer in self.layers:
            tokens, asked = enter_layer(layer, tokens, geometry)
            tokens = layer(tokens, **asked)
        return self.head(tokens.mean(dim=1))


def test_a_strangers_transformer_is_adapted_trained_and_stored(tmp_path):
    torch.manual_seed(0)
    points = clouds(3, 40)
    plain = Transformer()
    frozen = {name: tensor.clone() for name, tensor in plain.layers.state_dict().items()}
    before = plain(points)
    model = get_peft_model(plain, GuidedAdapterConfig(r=4))
    assert all(isinstance(layer, AdaptedLayer) for layer in plain.layers)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], 1e-2)
    model.train()
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(points), torch.tensor([0, 1, 0]))
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    expected = model.eval()(points)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = PeftModel.from_pretrained(Transformer(), tmp_path).eval()
    torch.testing.assert_close(again(points), expected)
    with again.disable_adapter():
        torch.testing.assert_close(again(points), before)
    bare = again.unload()
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in bare.layers.state_dict().items())


def test_acts_encoder_is_adapted_by_the_same_protocol():
    model = tiny_act(ActForPointCloudClassification)
    points = clouds(2, 64)
    before = model(points).logits
    adapted = get_peft_model(model, GuidedAdapterConfig(r=4, init_weights=False)).eval()
    assert (adapted(points).logits - before).abs().max() > 0.01
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(points).logits, before)


def test_plain_layers_ask_for_nothing():
    layer = nn.Linear(2, 2)
    tokens = torch.rand(1, 3, 2)
    entered, asked = enter_layer(layer, tokens, None, count=3)
    assert torch.equal(entered, tokens) and asked == {}
    positions = torch.rand(1, 2, 2)
    entered, asked = enter_layer(layer, tokens, None, positions)
    # The last token is one that an adapter has added.
    assert torch.equal(entered, tokens + nn.functional.pad(positions, (0, 0, 0, 1))) and asked == {}


BERT = BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)


@pytest.mark.parametrize("model", [BertModel(BERT), nn.Linear(2, 2)], ids=["bert", "linear"])
def test_what_a_model_needs_is_said(model):
    with raises(ValueError, naming="layer_stack"):
        get_peft_model(model, GuidedAdapterConfig())


def test_layers_that_get_no_centers_say_so():
    class Blind(Transformer):
        @property
        def layer_stack(self):
            return LayerStack(self.layers, "layers", "linear2", 24, views=0, pretrained=("layers",))

    with raises(ValueError, naming="positions"):
        get_peft_model(Blind(), GuidedAdapterConfig())
