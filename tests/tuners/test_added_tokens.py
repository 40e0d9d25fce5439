"""Methods that add tokens to those of a cloud (IDPT, DAPT, PPT): what goes on between layers, and what is read."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers.pytorch_utils import Conv1D

from hf_any3d import (
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    DAPTConfig,
    IDPTConfig,
    PPTConfig,
)
from hf_any3d.tuners.dapt import DAPTLayer
from hf_any3d.tuners.idpt import IDPTLayer
from tests.reference.fill import points

CONFIGS = {
    "idpt": lambda **settings: IDPTConfig(**{"prompt_layers": [0, 1], "neighbors": 3, **settings}),
    "dapt": lambda **settings: DAPTConfig(**{"r": 4, "init_weights": False, "scales": "random", **settings}),
    "ppt": lambda **settings: PPTConfig(**{"num_groups": 5, "group_size": 6, "r": 8, **settings}),
}
ADDED = {"idpt": 2, "dapt": 3, "ppt": 5}
"""Number of tokens behind the last of three blocks."""
BY_METHOD = pytest.mark.parametrize("method", CONFIGS)
PROMPTS = ("cls", "prompt_mean", "max")


def clouds(count=2):
    return torch.from_numpy(points("added tokens", count, 64))


def base_of(**settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_groups": 8, "group_size": 4}
    config = ActConfig(**{**sizes, "num_labels": 3, "head_widths": [8], "pooling": PROMPTS, **settings})
    return ActForPointCloudClassification(config).eval()


def adapted(config, **settings):
    model = get_peft_model(base_of(**settings), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn_like(weight))
    return model


@BY_METHOD
@torch.no_grad()
def test_added_tokens_follow_those_of_the_cloud_and_show_in_no_output(method):
    model = adapted(CONFIGS[method]())
    lengths = []
    for layer in model.get_base_model().act.blocks.layers:
        layer.register_forward_hook(lambda module, args, out: lengths.append(out.shape[1] - 9))
    output = model(points=clouds(), output_hidden_states=True)
    assert lengths == {"idpt": [1, 2, 2], "dapt": [1, 2, 3], "ppt": [5, 5, 5]}[method]
    assert lengths[-1] == ADDED[method]
    assert {state.shape for state in output.hidden_states} == {(2, 9, 16)}


@BY_METHOD
def test_a_head_on_prompts_without_prompts_is_refused(method):
    model = adapted(CONFIGS[method]())
    with model.disable_adapter(), pytest.raises(ValueError, match="no adapter leaves tokens behind the last block"):
        model(points=clouds())


@pytest.mark.slow
@BY_METHOD
@torch.no_grad()
def test_two_adapters_add_tokens_at_once(method):
    # PEFT runs one adapter's head.
    model = adapted(CONFIGS[method](modules_to_save=[]))
    alone = model(points=clouds()).logits
    other = CONFIGS[method](modules_to_save=[], **({"prompt_layers": 2} if method == "idpt" else {}))
    model.add_adapter("other", other)
    lengths = []
    model.get_base_model().act.blocks.layers[-1].register_forward_hook(
        lambda module, args, out: lengths.append(out.shape[1] - 9)
    )
    torch.testing.assert_close(model(points=clouds()).logits, alone)
    model.base_model.set_adapter(["default", "other"])
    both = model(points=clouds()).logits
    assert lengths == [ADDED[method], {"idpt": 3, "dapt": 6, "ppt": 10}[method]]
    assert (both - alone).abs().max() > 1e-4
    model.delete_adapter("other")
    model.set_adapter("default")
    torch.testing.assert_close(model(points=clouds()).logits, alone)


@BY_METHOD
@torch.no_grad()
def test_a_cloud_does_not_depend_on_its_batch(method):
    model = adapted(CONFIGS[method]())
    batch = clouds(3)
    alone = model(points=batch[1:2]).logits
    torch.testing.assert_close(model(points=batch).logits[1:2], alone, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_random_position_is_not_trained_but_stored(tmp_path):
    model = adapted(CONFIGS["idpt"](train_position=False))
    named = dict(model.named_parameters())
    (position,) = [name for name in named if "idpt_position" in name]
    assert not named[position].requires_grad
    with pytest.raises(AssertionError):
        torch.testing.assert_close(named[position], torch.zeros_like(named[position]))
    expected = model(points=clouds()).logits
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(base_of(), tmp_path).eval()
    torch.testing.assert_close(opened(points=clouds()).logits, expected)


@pytest.mark.parametrize(
    ("numbers", "made"), [(None, [2]), (1, [1]), ([2, 0, 2], [0, 2])], ids=["the last one", "one", "in any order"]
)
def test_prompts_are_made_before_the_layers_that_are_named(numbers, made):
    model = get_peft_model(base_of(), CONFIGS["idpt"](prompt_layers=numbers))
    layers = model.get_base_model().act.blocks.layers
    assert [n for n, layer in enumerate(layers) if isinstance(layer, IDPTLayer) and layer.nested] == made
    wrapped = [n for n, layer in enumerate(layers) if isinstance(layer, IDPTLayer)]
    assert wrapped == list(range(made[0], 3))  # prompts go on to the end
    alone = get_peft_model(base_of(), CONFIGS["idpt"](prompt_layers=numbers, keep_prompts=False))
    layers = alone.get_base_model().act.blocks.layers
    assert [n for n, layer in enumerate(layers) if isinstance(layer, IDPTLayer)] == made


def test_outputs_of_linear_layers_and_norms_are_scaled_by_channel():
    inside = {
        "linear": torch.nn.Linear(8, 12),
        "convolution": Conv1D(20, 8),
        "norm": torch.nn.LayerNorm(8),
        "bare_norm": torch.nn.LayerNorm(8, elementwise_affine=False),
        "table": torch.nn.Embedding(3, 8),
    }
    bare = torch.nn.LayerNorm(8, elementwise_affine=False)
    layer = DAPTLayer(torch.nn.ModuleDict(inside), 8, is_open=False, is_first=False, final_norm=bare)
    assert layer.widths == {"linear": 12, "convolution": 20, "norm": 8, "final_norm": 8}
    layer.update_layer("default", DAPTConfig(r=4))
    with torch.no_grad():
        layer.dapt_scales_linear["default"].gamma.fill_(2)
        layer.dapt_scales_linear["default"].beta.fill_(3)
        tokens = torch.randn(2, 8)
        linear = inside["linear"]
        torch.testing.assert_close(linear(tokens), 2 * (tokens @ linear.weight.T + linear.bias) + 3)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (lambda: IDPTConfig(prompt_layers=3), r"prompt_layers=\[3\]; expected numbers from 0 to 2"),
        (lambda: IDPTConfig(prompt_layers=[]), "arg is an empty sequence|empty"),
        (lambda: IDPTConfig(prompt_module="gcn"), "prompt_module='gcn'; expected one of 'dgcnn'"),
        (
            lambda: IDPTConfig(prompt_layers=0, target_modules=r".*layers\.[01]"),
            "leave out act.blocks.layers.2, to which the tokens go that act.blocks.layers.0 adds",
        ),
        (lambda: DAPTConfig(layers_to_transform=[0, 2]), "leave out act.blocks.layers.1, to which the tokens go"),
        (lambda: PPTConfig(target_modules=r".*layers\.[12]"), "leave out act.blocks.layers.0, to which the tokens go"),
        (lambda: DAPTConfig(positions="twice"), "positions='twice'; expected one of 'every_layer', 'once'"),
    ],
)
def test_bad_settings_are_refused(config, match):
    with pytest.raises(ValueError, match=match):
        get_peft_model(base_of(), config())


def test_a_segmentation_head_on_prompts_needs_one_in_each_of_its_blocks():
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_groups": 8, "group_size": 4}
    config = ActConfig(
        **sizes,
        num_labels=2,
        category_parts=[[0, 1]],
        segmentation_layers=[0, 2],
        segmentation_head_widths=[8],
        segmentation_head_dropout=[0.0],
        propagation_widths=[8, 8],
        segmentation_pooling="prompts",
    )
    fitting = IDPTConfig(prompt_layers=[0, 2], prompt_module="mlp", keep_prompts=False)
    model = get_peft_model(ActForPartSegmentation(config), fitting).eval()
    assert model(points=clouds()).logits.shape == (2, 64, 2)
    for other in (IDPTConfig(prompt_layers=[2], prompt_module="mlp", keep_prompts=False), DAPTConfig()):
        model = get_peft_model(ActForPartSegmentation(config), other).eval()
        with pytest.raises(ValueError, match="do not leave one prompt, before and after the block"):
            model(points=clouds())
