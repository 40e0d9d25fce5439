"""The contract of Any2Point models for every registered encoder family."""

import pytest
import torch
from safetensors.torch import load_file

from hf_any3d.modeling.any2point import Any2PointForPointCloudClassification
from tests.closeness import assert_nearly_equal
from tests.errors import raises
from tests.tiny_encoders import (
    ENCODER_TYPES,
    LAYERS,
    adapted_model,
    clouds,
    is_cancelled_by_batch_norm,
    saved_encoder,
    tiny_model,
    train_step,
)
from tests.turns import ALL_PAIRS, by_turns, some

# One for each kind of position and of layer, for tests that do not depend on the family otherwise. The scope orders
# tests by family, so that a model is built once for all of them.
SOME = (
    *("bert", "clip_text_model", "gpt2", "mpnet", "t5", "deberta-v2", "modernbert", "llama", "gemma3_text"),
    *("vit", "dinov2", "dinov3_vit", "beit", "audio-spectrogram-transformer", "whisper", "wav2vec2", "wavlm"),
)
some_families = pytest.mark.parametrize("family", SOME, scope="module")
# Where only kinds of layers matter, each test has every third of these, and precisions, which change what layers
# compute and not which, every sixth.
THIRDS = [some(SOME, left_out=set(SOME) - set(SOME[start::3])) for start in range(3)]
SIXTHS = [some(SOME, left_out=set(SOME) - set(SOME[start::6])) for start in range(6)]


def tried_with(families):
    return pytest.mark.parametrize("family", list(ENCODER_TYPES) if ALL_PAIRS else families, scope="module")


def core_of(model):
    return model.base_model.model.any2point


def encoder_weights(model):
    """Return the frozen weights of an adapted model by name: the encoder without adapters."""
    tensors = core_of(model).encoder.state_dict()
    return {name: tensor.clone() for name, tensor in tensors.items() if "guided_adapter_" not in name}


def frozen_modules(model):
    return [m for name, m in core_of(model).encoder.named_modules() if "guided_adapter_" not in name]


# tests/common/test_every_encoder.py teaches every encoder.
@pytest.mark.slow
@tried_with(SOME)
def test_a_training_step_reaches_all_trained_parameters_and_not_the_encoder(family):
    model = adapted_model(family, large_logits=True)
    frozen = encoder_weights(model)
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train_step(model)
    own = {id(parameter) for module in frozen_modules(model) for parameter in module.parameters(recurse=False)}
    assert own
    for name, parameter in model.named_parameters():
        if id(parameter) in own:
            assert not parameter.requires_grad and parameter.grad is None, name
        elif parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            if not is_cancelled_by_batch_norm(name):
                assert not torch.equal(parameter, trained[name]), name
            assert (parameter.grad.abs().max() > 0) != is_cancelled_by_batch_norm(name), name
    after = encoder_weights(model)
    assert frozen.keys() == after.keys()
    assert all(torch.equal(frozen[name], after[name]) for name in frozen)


@pytest.mark.slow
@some_families
def test_encoder_stays_in_eval_mode_while_adapters_follow(family):
    model = adapted_model(family, large_logits=True)
    for mode in (True, False):
        model.train(mode)
        assert not any(module.training for module in frozen_modules(model) if not hasattr(module, "takes_geometry"))
        adapters = [m for name, m in model.named_modules() if "guided_adapter_" in name]
        assert len(adapters) > 10 * LAYERS
        assert all(module.training == mode for module in adapters)
        wrapped = [module for module in model.modules() if getattr(type(module), "takes_geometry", False)]
        assert [module.training for module in wrapped] == [mode] * LAYERS


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@tried_with(THIRDS[0])
def test_reloaded_model_is_equal_without_the_encoder_in_its_file(family, tmp_path):
    model = tiny_model(family, large_logits=True)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored and not [name for name in stored if "encoder." in name]
    loaded = Any2PointForPointCloudClassification.from_pretrained(tmp_path).eval()
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        assert torch.equal(loaded(clouds()).logits, model(clouds()).logits)
    assert not any(parameter.requires_grad for parameter in loaded.any2point.encoder.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype"),
    by_turns(ENCODER_TYPES if ALL_PAIRS else SIXTHS[0], [torch.bfloat16, torch.float16]),
    scope="module",
)
def test_model_opens_in_half_precision_and_opens_in_it_again(family, dtype, tmp_path):
    model = tiny_model(family, large_logits=True)
    model.save_pretrained(tmp_path / "full")
    opened = Any2PointForPointCloudClassification.from_pretrained(tmp_path / "full", dtype=dtype)
    opened.save_pretrained(tmp_path / "half")
    again = Any2PointForPointCloudClassification.from_pretrained(tmp_path / "half")
    with torch.no_grad():
        for half in (opened, again):
            assert {half.any2point.output_norm.weight.dtype, half.classifier.out.weight.dtype} == {dtype}
            logits = half(clouds()).logits
            assert logits.dtype == dtype
            assert_nearly_equal(logits, model(clouds()).logits, 0.1)


@pytest.mark.slow
@tried_with(SOME[::2])
def test_attention_implementations_agree(family):
    model = tiny_model(family, large_logits=True)
    if not model.any2point.encoder._supports_sdpa:
        with raises(ValueError, naming="scaled_dot_product_attention"):
            tiny_model(family, attn_implementation="sdpa")
        return
    eager = tiny_model(family, large_logits=True, attn_implementation="eager")
    names = [made.any2point.encoder.config._attn_implementation for made in (model, eager)]
    assert names == ["sdpa", "eager"]
    with torch.no_grad():
        torch.testing.assert_close(model(clouds()).logits, eager(clouds()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@tried_with(SIXTHS[1])
def test_encoder_in_bfloat16_trains_adapters_in_float32(family):
    model = adapted_model(family, dtype=torch.bfloat16, large_logits=True)
    assert {p.dtype for p in encoder_weights(model).values() if p.is_floating_point()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    full = adapted_model(family, large_logits=True)
    with torch.no_grad():
        low, high = model(points=clouds()).logits, full(points=clouds()).logits
    assert low.dtype == torch.float32
    assert_nearly_equal(low, high, 0.1)
    assert train_step(model).isfinite()


@pytest.mark.slow
@tried_with(SIXTHS[2])
def test_autocast_trains_as_full_precision_does(family):
    model = adapted_model(family, head_dropout=0.0, head_widths=(), large_logits=True).train()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    logits, gradients = [], []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = model(points=clouds(), labels=torch.arange(3))
        output.loss.backward()
        logits.append(output.logits)
        assert all(parameter.grad.dtype == torch.float32 for parameter in trained.values())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained.values()]))
    assert_nearly_equal(logits[1], logits[0], 0.1)
    assert gradients[0].abs().max() > 0.01
    # Gradients of random weights on three clouds: half precision changes them, but not their direction.
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.7


@pytest.mark.slow
@tried_with(THIRDS[1])
def test_fewer_layers_of_the_encoder_can_be_used(family, tmp_path):
    model = tiny_model(family, num_layers=1, large_logits=True)
    core = model.any2point
    assert len(core.family.layers_of(core.encoder)) == 1 == core.config.encoder_config.num_hidden_layers
    whole = tiny_model(family, large_logits=True)
    first = core.family.layers_of(core.encoder)[0].state_dict()
    expected = core.family.layers_of(whole.any2point.encoder)[0].state_dict()
    assert all(torch.equal(first[name], expected[name]) for name in expected)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        logits = model(clouds()).logits
        assert not torch.equal(logits, whole(clouds()).logits)
        assert torch.equal(logits, type(model).from_pretrained(tmp_path)(clouds()).logits)


@pytest.mark.slow
@tried_with(SOME)
def test_model_copies_class_token_and_final_norm_of_its_encoder(family):
    core = tiny_model(family, large_logits=True).any2point
    source = core.family
    if source.class_token is not None:
        assert torch.equal(core.class_token.token, source.class_token(core.encoder))
    norm = source.norm_of(core.encoder, source.final_norm)
    if norm is not None:
        assert torch.equal(core.output_norm.weight, norm.weight)
        assert core.output_norm is not norm and core.output_norm.weight.requires_grad
    assert saved_encoder(family) == core.config.encoder_name_or_path
