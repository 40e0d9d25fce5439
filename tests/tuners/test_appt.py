"""APPT: one prompt of the tokens of a cloud, inserted anew before every layer, around any encoder."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from hf_any3d import (
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    Any2PointForPartSegmentation,
    APPTConfig,
)
from hf_any3d.tuners.appt import APPTLayer
from tests.common.models import case_of
from tests.common.tuners import adapted, answer_of, assert_apart, base_of, step
from tests.errors import raises
from tests.tiny_encoders import LAYERS, clouds, tiny_model, train_step
from tests.turns import some

# Text with a table of positions, relative, rotary and convolutional ones; images; and sound.
ENCODERS = ["bert", "t5", "llama", "clip_text_model", "vit", "dinov3_vit", "audio-spectrogram-transformer", "wavlm"]
TOKENS = 8  # of a cloud of the tiny models
POOLED = {"pooling": ["max_plus_mean"], "released": {"use_input_norm": False}}


def with_prompts(encoder: str = "bert", model: dict | None = None, **settings) -> PeftModel:
    """Return a tiny model whose head reads the prompts too."""
    base = tiny_model(encoder, large_logits=True, **POOLED | (model or {}))
    torch.manual_seed(5)
    return get_peft_model(base, APPTConfig(**settings)).eval()


@torch.no_grad()
def answer(model: nn.Module, points: torch.Tensor | None = None) -> torch.Tensor:
    """Return the logits in eval mode."""
    return model.eval()(points=clouds() if points is None else points).logits


def inputs_of_layers(model: nn.Module) -> list[torch.Tensor]:
    """Return what each frozen layer reads for the same clouds, in order."""
    seen: list[torch.Tensor] = []
    hooks = [
        layer.base_layer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        for layer in model.modules()
        if isinstance(layer, APPTLayer)
    ]
    answer(model)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_positions_of_the_encoder_are_left_out_while_the_adapter_runs():
    model = with_prompts()
    table = model.get_base_model().any2point.encoder.embeddings.position_embeddings.weight
    before = answer(model)
    with model.disable_adapter():
        bare = answer(model)
    table.add_(torch.randn(table.shape, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(answer(model), before)
    # Without the adapter the model projects again.
    with model.disable_adapter():
        assert (answer(model) - bare).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("encoder", some(ENCODERS, left_out=["clip_text_model", "vit", "t5", "dinov3_vit"]))
def test_a_step_reaches_all_trained_weights_around_every_modality(encoder, tmp_path):
    model = with_prompts(encoder, order_table=True)
    torch.testing.assert_close(answer(model)[:1], answer(model, clouds()[:1]), rtol=1e-4, atol=1e-5)
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    assert train_step(model).isfinite()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            assert weight.grad is None and torch.equal(weight, frozen[name]), name
        elif name.endswith("appt_relation.default.bias"):
            assert weight.grad is not None, name  # a norm takes away what it adds to all channels
        elif ".appt_" in name or "output_norm" in name:
            assert weight.grad.abs().max() > 0, name
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(tiny_model(encoder, large_logits=True, **POOLED), tmp_path)
    assert torch.equal(answer(opened), answer(model))


@torch.no_grad()
def test_the_first_cloud_of_a_batch_matters_only_in_the_released_pooling():
    points = clouds()
    for pooling, differs in (("max_plus_mean", False), ("max_plus_first_mean", True)):
        model = with_prompts(model={"pooling": [pooling]})
        moved = answer(model, points.flip(0)).flip(0)
        assert ((moved - answer(model, points)).abs().max() > 1e-3) == differs
        assert bool(model.get_base_model().config.batch_dependent_flags) == differs


@torch.no_grad()
def test_a_point_transformer_reads_the_prompts_of_all_its_blocks():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_groups": TOKENS}
    config = ActConfig(**sizes, group_size=4, num_labels=3, head_widths=[8], pooling=["max_plus_mean"])
    model = get_peft_model(ActForPointCloudClassification(config), APPTConfig()).eval()
    assert [states.shape[1] for states in inputs_of_layers(model)] == [1 + TOKENS + 1, 1 + TOKENS + 2]
    core = model.get_base_model().act
    found = {}
    core.norm.register_forward_hook(lambda module, args, out: found.update({args[0].shape[1]: out}))
    features = core(clouds()).pooler_output
    complete = torch.cat([found[1 + TOKENS], found[2]], dim=1)
    torch.testing.assert_close(features, complete.amax(dim=1) + complete.mean(dim=1))


@pytest.mark.parametrize("model_class", [ActForPartSegmentation, Any2PointForPartSegmentation])
def test_a_model_of_parts_learns_with_prompts_and_opens_again(model_class, tmp_path):
    case = case_of(model_class)
    model = adapted(case, "APPT")
    before = answer_of(case, model)
    with model.disable_adapter():
        assert_apart(answer_of(case, model), before)
    start = {name: weight.clone() for name, weight in model.named_parameters() if ".appt_" in name}
    step(case, model)
    learned = {name for name, weight in model.named_parameters() if name in start and not weight.equal(start[name])}
    # A norm takes away what the bias adds to all channels, so it may stay.
    assert start.keys() - learned <= {name for name in start if name.endswith("bias")}
    after = answer_of(case, model)
    assert_apart(after, before)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(base_of(case), tmp_path)
    assert torch.equal(answer_of(case, opened), after)


@torch.no_grad()
def test_two_adapters_have_prompts_of_their_own():
    model = with_prompts(modules_to_save=[])
    alone = answer(model)
    model.add_adapter("other", APPTConfig(layers_to_transform=[LAYERS - 1], modules_to_save=[]))
    torch.testing.assert_close(answer(model), alone)
    model.base_model.set_adapter(["other", "default"])
    lengths = [states.shape[1] - 1 - TOKENS for states in inputs_of_layers(model)]
    assert lengths == [*range(1, LAYERS), LAYERS + 1]
    model.delete_adapter("other")
    model.set_adapter("default")
    torch.testing.assert_close(answer(model), alone)


def test_gaps_merging_and_attention_over_clouds_are_refused():
    with pytest.raises(ValueError, match=r"leave out .*1, to which the tokens go"):
        with_prompts(layers_to_transform=[0])
    with pytest.raises(ValueError, match=r"appt cannot be merged into the encoder; use unload\(\)"):
        with_prompts().merge_and_unload()
    with raises(ValueError, naming="attention_axis"):
        with_prompts(model={"released": {"attention_axis": "batch"}})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tokenizer_expansions": [2, 2]}, "tokenizer_expansions"),
        ({"tokenizer_expansions": [2, 2, 5]}, "tokenizer_expansions"),
        ({"tokenizer_expansions": [4, 4, 1], "tokenizer_width": 64}, "multiple of 6"),
        ({"height_axis": 3}, "height_axis"),
    ],
)
def test_sizes_that_a_full_tokenizer_cannot_have_are_refused(settings, named):
    with raises(ValueError, naming=named):
        tiny_model(tokenizer="point_pn_full", **settings)
