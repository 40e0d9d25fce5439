"""Methods that add tokens to those of a cloud (IDPT, DAPT, PPT): what goes on between layers, and what is read."""

import pytest
import torch
from peft import get_peft_model

from hf_any3d import (
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    DAPTConfig,
    IDPTConfig,
    PPTConfig,
)
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
