import pytest
import torch

from hf_any3d.modeling.any2point import Any2PointModel
from tests.tiny_encoders import clouds, saved_encoder, tiny_model


@pytest.mark.parametrize("name", ["encoder_layers", "num_token"])
def test_setting_without_effect_is_refused(name):
    message = f"Any2PointModel.from_encoder_pretrained has no argument '{name}'; expected its own or one of Any2Poi"
    with pytest.raises(TypeError, match=message):
        Any2PointModel.from_encoder_pretrained(saved_encoder("bert"), **{name: 1})


@pytest.mark.parametrize("where", ["input", "every_layer", "input_and_every_layer"])
def test_positions_are_added_as_configured(where):
    model = tiny_model(released={"position_injection": where, "use_input_norm": False}).any2point
    seen = []
    for layer in model.family.layers_of(model.encoder):
        layer.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        tokens = model.point_tokenizer(clouds()).tokens
        model(clouds())
    (first, out), (second, _) = seen
    assert torch.allclose(second, out) == (where == "input")
    added = {"input": 1, "every_layer": 1, "input_and_every_layer": 2}[where]
    once = tiny_model(released={"use_input_norm": False}).any2point
    once.family.layers_of(once.encoder)[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        once(clouds())
    positions = seen[-1][:, 1:] - tokens
    torch.testing.assert_close(first[:, 1:] - tokens, added * positions, rtol=1e-4, atol=1e-5)


def test_batch_axis_attention_warns_once_and_depends_on_the_batch():
    model = tiny_model("clip_text_model", released={"attention_axis": "batch"})
    with torch.no_grad(), pytest.warns(UserWarning, match="depend on the other clouds") as caught:
        together = model(clouds()).logits
        alone = model(clouds()[:1]).logits
    assert len([w for w in caught if "other clouds" in str(w.message)]) == 1
    assert not torch.allclose(together[:1], alone, atol=1e-4)
