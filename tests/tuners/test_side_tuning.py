"""Side-tuning: no backward pass through the encoder, what reaches the tokenizer, and which layers it needs."""

import pytest
import torch
from peft import get_peft_model

from hf_any3d import OpenShapeForPointCloudClassification, SideTuningConfig
from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.tuners.side_tuning.layer import SideTuningLayer
from hf_any3d.tuners.targets import layer_stack
from tests.common.case import varied_clouds
from tests.tiny_aligned import tiny_aligned
from tests.tiny_encoders import clouds, tiny_model


def test_nothing_is_propagated_back_through_the_encoder():
    model = get_peft_model(tiny_model(), SideTuningConfig(r=8, init_weights=False)).train()
    outputs = []
    for layer in layer_stack(model.get_base_model()).layers:
        layer.base_layer.register_forward_hook(lambda module, args, output: outputs.append(hidden_of(output)))
    model(points=clouds(), labels=torch.arange(3)).loss.backward()
    assert len(outputs) == 2 and not any(output.requires_grad for output in outputs)
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in trained.values())
    # The tokenizer learns through the side network.
    assert any("point_tokenizer" in name and gradient.abs().max() > 1e-6 for name, gradient in trained.items())


def test_an_untrained_side_network_changes_nothing():
    plain = tiny_aligned(OpenShapeForPointCloudClassification)
    points = varied_clouds(2, channels=6)
    with torch.no_grad():
        expected = plain(points).logits
        assert torch.equal(get_peft_model(plain, SideTuningConfig(r=8)).eval()(points).logits, expected)


@pytest.mark.parametrize("gate, source", [(50.0, "side_tuning_entry"), (-50.0, "side_tuning_down")])
def test_an_open_gate_keeps_the_state_and_a_closed_one_takes_the_layers_output(gate, source):
    torch.manual_seed(0)
    layer = SideTuningLayer(torch.nn.Linear(6, 6), 6, is_last=False, ends_stage=True)
    layer.update_layer("default", SideTuningConfig(r=4, init_weights=False))
    with torch.no_grad():
        layer.side_tuning_gate["default"].fill_(gate)
        layer.side_tuning_fc2["default"].weight.zero_()
        layer.side_tuning_fc2["default"].bias.zero_()
        tokens = torch.randn(2, 5, 6)
        output = layer(tokens)
        state = getattr(layer, source)["default"](tokens if gate > 0 else output)
        expected = output + layer.side_tuning_up["default"](state)
    torch.testing.assert_close(layer.stage_output(output), expected)
