"""Precision, attention, device and quantization of the encoder, at every entry point."""

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig

from hf_any3d import Any2PointForPointCloudClassification, AutoModelForPointCloudClassification, GuidedAdapterConfig
from hf_any3d.modeling.pretrained_parts.loading import encoder_loading
from hf_any3d.modeling.pretrained_parts.tensors import own_tensors
from tests.errors import raises
from tests.tiny_encoders import clouds, random_encoder, tiny_config, tiny_model, train_step
from tests.turns import some


def logits(model, points=None):
    points = clouds() if points is None else points
    more = {"category": torch.tensor([0, 1, 0])} if type(model).__name__.endswith("PartSegmentation") else {}
    return model(points=points, **more).logits


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """An encoder with layers wide enough for blocks of 4 bits."""
    path = tmp_path_factory.mktemp("wide")
    random_encoder(tiny_config("bert", hidden_size=64, intermediate_size=128)).save_pretrained(path)
    return str(path)


def dtypes_of(model):
    trained = {p.dtype for name, p in model.named_parameters() if p.requires_grad or "guided_adapter" in name}
    encoder = {own.tensor.dtype for own in own_tensors(model.any2point.encoder) if own.tensor.is_floating_point()}
    return trained, encoder


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(["adapter", "stored whole", "stored adapter"], left_out=["stored whole"]))
def test_dtype_of_the_frozen_encoder_is_saved_and_trained_parameters_stay_in_full_precision(kind, wide, tmp_path):
    source = tiny_model(wide, encoder_dtype="bfloat16", large_logits=True)
    if kind.startswith("stored"):
        source.config.encoder_name_or_path = None
    model = get_peft_model(source, GuidedAdapterConfig(r=4)) if kind.endswith("adapter") else source
    train_step(model)
    model.eval().save_pretrained(tmp_path)
    expected_dtypes = ({torch.float32}, {torch.bfloat16})
    opened = [AutoModelForPointCloudClassification.from_pretrained(tmp_path) for _ in range(2)]
    opened[0].save_pretrained(tmp_path / "again")
    opened[0] = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "again")
    if kind.endswith("adapter"):
        opened.append(AutoPeftModel.from_pretrained(tmp_path).get_base_model())
        base = Any2PointForPointCloudClassification.from_encoder_pretrained
        if kind == "adapter":
            opened.append(PeftModel.from_pretrained(base(config=source.config), tmp_path).get_base_model())
    with torch.no_grad():
        expected = logits(model)
        for one in opened:
            assert dtypes_of(one) == expected_dtypes and one.dtype == torch.float32
            assert torch.equal(logits(one.eval()), expected)
    plain = AutoModelForPointCloudClassification.from_pretrained(tmp_path, encoder_dtype=None)
    assert dtypes_of(plain) == ({torch.float32}, {torch.float32})


@pytest.mark.slow
def test_dtypes_that_do_not_fit_are_refused(wide, tmp_path):
    for wrong in ("int8", "torch.bfloat16", torch.bfloat16):
        with pytest.raises(ValueError, match=f"encoder_dtype={wrong!r}; expected one of None, 'float32', 'bfloat16'"):
            tiny_model(encoder_dtype=wrong)
    with raises(ValueError, naming="dtype=torch.float16; expected that of the config"):
        tiny_model(encoder_dtype="bfloat16", dtype=torch.float16)
    model = tiny_model(wide, encoder_dtype="bfloat16")
    with raises(ValueError, naming="encoder_dtype"):
        model.unfreeze_encoder()
    get_peft_model(model, GuidedAdapterConfig(r=4)).save_pretrained(tmp_path)
    with raises(ValueError, naming="dtype=torch.float32; expected that of the config"):
        Any2PointForPointCloudClassification.from_pretrained(tmp_path, dtype=torch.float32)
    with raises(ValueError, naming="encoder_dtype"):
        Any2PointForPointCloudClassification.from_pretrained(tmp_path, encoder_dtype="double")


def test_the_quantization_config_has_the_form_that_every_quantizer_supports():
    wanted = BitsAndBytesConfig(load_in_8bit=True)
    assert encoder_loading("cpu", wanted) == {"device_map": {"": "cpu"}, "quantization_config": wanted}
    assert encoder_loading(None, None) == {}


def test_encoder_among_the_models_own_weights_is_not_quantized_silently(tmp_path):
    model = tiny_model("bert")
    model.unfreeze_encoder()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="stores its encoder itself"):
        AutoModelForPointCloudClassification.from_pretrained(
            tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
        )
