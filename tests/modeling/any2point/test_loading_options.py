"""Precision, attention, device and quantization of the encoder, at every entry point."""

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BitsAndBytesConfig

from hf_any3d import Any2PointForPointCloudClassification, AutoModelForPointCloudClassification, GuidedAdapterConfig
from hf_any3d.modeling.pretrained_parts.loading import encoder_loading
from hf_any3d.modeling.pretrained_parts.tensors import own_tensors
from tests.errors import raises
from tests.tiny_encoders import (
    clouds,
    random_encoder,
    tiny_config,
    tiny_model,
    tiny_part_model,
    tiny_scene_model,
    train_step,
)

KINDS = [tiny_model, tiny_scene_model, tiny_part_model]


def logits(model, points=None):
    points = clouds() if points is None else points
    more = {"category": torch.tensor([0, 1, 0])} if type(model).__name__.endswith("PartSegmentation") else {}
    return model(points=points, **more).logits


def loss(model):
    shape = logits(model).shape[:-1]
    more = {"category": torch.tensor([0, 1, 0])} if type(model).__name__.endswith("PartSegmentation") else {}
    return model(points=clouds(), labels=torch.zeros(shape, dtype=torch.long), **more).loss


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def head_of(model):
    return getattr(model, "classifier", None) or model.segmenter


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """An encoder with layers wide enough for blocks of 4 bits."""
    path = tmp_path_factory.mktemp("wide")
    random_encoder(tiny_config("bert", hidden_size=64, intermediate_size=128)).save_pretrained(path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    ("settings", "dtype"), [({"encoder_dtype": "bfloat16"}, torch.bfloat16), ({"dtype": torch.float16}, torch.float16)]
)
def test_half_precision_encoder_gives_the_same_predictions_and_nearly_the_same_gradients(make, settings, dtype):
    full, half = make().train(), make(**settings).train()
    torch.nn.init.normal_(head_of(full).out.weight, std=2.0)
    head_of(half).load_state_dict(head_of(full).state_dict())
    for model in (full, half):
        without_dropout(model)
        loss(model).backward()
    assert {p.dtype for p in half.any2point.encoder.parameters()} == {dtype}
    pairs = [
        (one.grad.flatten(), other.grad.flatten())
        for one, other in zip(full.parameters(), half.parameters(), strict=True)
        if one.requires_grad and one.grad is not None
    ]
    one, other = (torch.cat(side) for side in zip(*pairs, strict=True))
    assert other.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.95
    with torch.no_grad():
        expected, found = logits(full.eval()), logits(half.eval())
    worst = (found - expected).abs().max()
    assert worst < 0.05 * expected.abs().max()
    top = expected.topk(2, dim=-1).values
    clear = top[..., 0] - top[..., 1] > 2 * worst
    assert clear.any() and torch.equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])


def dtypes_of(model):
    trained = {p.dtype for name, p in model.named_parameters() if p.requires_grad or "guided_adapter" in name}
    encoder = {own.tensor.dtype for own in own_tensors(model.any2point.encoder) if own.tensor.is_floating_point()}
    return trained, encoder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "stored whole", "stored adapter"])
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


class AttentionTypes(TorchDispatchMode):
    """Records the dtypes in which attention is computed on a CPU."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in func.__name__:
            self.found.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [False, True])
def test_training_computes_attention_of_half_precision_in_full_precision(autocast):
    model = tiny_model(**({} if autocast else {"encoder_dtype": "bfloat16"})).train()
    with AttentionTypes() as training, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss(model).backward()
    with AttentionTypes() as inference, torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits(model)
    assert training.found == {torch.float32} and inference.found == {torch.bfloat16}
    assert model.any2point.encoder.config._attn_implementation == "sdpa"
