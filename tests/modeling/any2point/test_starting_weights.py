"""Tokenizers that start from weights of the package."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, set_seed

from hf_any3d.modeling.any2point import (
    Any2PointConfig,
    Any2PointForPointCloudClassification,
    PointTokenizerConfig,
    PointTokenizerForPointCloudClassification,
)
from hf_any3d.modeling.any2point.small_data_defaults import LIGHT
from hf_any3d.modeling.any2point.starting_weights import read_weights
from tests.errors import raises

SIZE = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 8}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a tiny encoder of the width that they fit."""
    folder = tmp_path_factory.mktemp("encoder")
    set_seed(0)
    AutoModel.from_config(AutoConfig.for_model("bert", max_position_embeddings=40, **SIZE)).save_pretrained(folder)
    return str(folder)


def build(encoder: str, seed: int = 0, **changes) -> Any2PointForPointCloudClassification:
    set_seed(seed)
    settings = {"num_tokens": 8, "num_labels": 3, "tokenizer_weights": "generated_shapes", **changes}
    return Any2PointForPointCloudClassification.from_encoder_pretrained(encoder, **settings)


def tokenizer_state(model: nn.Module) -> dict[str, torch.Tensor]:
    base = model.any2point if hasattr(model, "any2point") else model.point_tokenizer_model
    return base.point_tokenizer.state_dict()


def test_a_new_model_starts_from_them_whatever_its_seed(encoder):
    first, second = build(encoder), build(encoder, seed=1)
    found, wanted = tokenizer_state(first), read_weights("generated_shapes")
    assert found.keys() == wanted.keys()
    assert not torch.equal(first.classifier.out.weight, second.classifier.out.weight)
    gain = 1.5 * first.any2point.family.positions(first.any2point.encoder).weight.std()
    for name, tensor in wanted.items():
        scale = gain if name in ("token_norm.weight", "token_norm.bias") else 1
        torch.testing.assert_close(found[name], tensor * scale, msg=name)
        assert torch.equal(found[name], tokenizer_state(second)[name]), name


def test_the_control_without_encoder_starts_from_the_same(encoder):
    whole = build(encoder)
    alone = PointTokenizerForPointCloudClassification(PointTokenizerConfig.without_encoder(whole.config))
    for name, tensor in tokenizer_state(alone).items():
        if not name.startswith("token_norm"):
            assert torch.equal(tensor, tokenizer_state(whole)[name]), name
    torch.testing.assert_close(
        tokenizer_state(alone)["token_norm.bias"], 1.5 * read_weights("generated_shapes")["token_norm.bias"]
    )


def test_further_channels_start_without_influence(encoder):
    points = torch.rand(2, 64, 6, generator=torch.Generator().manual_seed(0)) - 0.5
    wide, narrow = build(encoder, in_channels=6).eval(), build(encoder).eval()
    tokens = wide.any2point.point_tokenizer(points).tokens
    assert torch.equal(tokens, narrow.any2point.point_tokenizer(points[..., :3].contiguous()).tokens)
    tokens.square().sum().backward()
    gradient = wide.any2point.point_tokenizer.local.lift.weight.grad  # (width, channels)
    assert (gradient[:, 3:].abs().sum(dim=0) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "alone"])
def test_trained_weights_are_not_replaced_by_them(kind, encoder, tmp_path):
    model: nn.Module = build(encoder)
    if kind == "alone":
        model = PointTokenizerForPointCloudClassification(PointTokenizerConfig.without_encoder(model.config))
    with torch.no_grad():
        for tensor in tokenizer_state(model).values():
            tensor.add_(1)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    for name, tensor in tokenizer_state(again).items():
        assert torch.equal(tensor, tokenizer_state(model)[name]), name
    points = torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    torch.testing.assert_close(again.eval()(points).logits, model.eval()(points).logits)


def test_new_models_have_them_by_default_and_configs_do_not(encoder):
    model = Any2PointForPointCloudClassification.from_encoder_pretrained(encoder, num_tokens=8)
    assert model.config.tokenizer_weights == "generated_shapes"
    assert Any2PointConfig(encoder_config=model.config.encoder_config).tokenizer_weights == "random"


MISFITS = [
    ({"tokenizer_width": 64}, "tokenizer_width=64; expected 96"),
    ({"tokenizer": "point_pn"}, "tokenizer='point_pn'; expected 'patch'"),
    ({"token_scale": None}, "token_scale=None; expected a number"),
]


@pytest.mark.parametrize("changes", [changes for changes, _ in MISFITS])
def test_new_models_start_from_random_weights_where_they_do_not_fit(changes, encoder):
    drawn = []
    for seed in (0, 1):
        set_seed(seed)
        model = Any2PointForPointCloudClassification.from_encoder_pretrained(encoder, num_tokens=8, **changes)
        assert model.config.tokenizer_weights == "random"
        drawn.append(nn.utils.parameters_to_vector(model.any2point.point_tokenizer.parameters()))
    assert not torch.equal(*drawn)


def test_an_encoder_of_another_width_is_refused_by_name_and_unknown_weights_too(bert):
    config = Any2PointConfig(encoder_config=bert.config, **LIGHT)
    with raises(ValueError, naming="hidden_size"):
        Any2PointForPointCloudClassification(config)
    with raises(ValueError, naming="tokenizer_weights"):
        Any2PointConfig(tokenizer_weights="other")


@pytest.fixture
def bert():
    return AutoModel.from_config(AutoConfig.for_model("bert", **SIZE | {"hidden_size": 48}))
