"""APPT: prompts of the model's own point embedding and locations, against a plain restatement of both."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from hf_any3d import ActConfig, ActForPointCloudClassification, APPTConfig
from hf_any3d.modeling.point_ops.geometry import normalize_centers
from hf_any3d.tuners.appt import APPTLayer
from tests.errors import raises
from tests.tiny_encoders import LAYERS, clouds, tiny_model, train_step

# Text with a table of positions, relative, rotary and convolutional ones; images; and sound.
ENCODERS = ["bert", "t5", "llama", "clip_text_model", "vit", "dinov3_vit", "audio-spectrogram-transformer", "wavlm"]
TOKENS = 8  # of a cloud of the tiny models
PATCH = {"tokenizer": "patch", "tokenizer_width": 12, "tokenizer_neighbors": 4}


def with_prompts(encoder: str = "bert", model: dict | None = None, **settings) -> PeftModel:
    """Return a tiny model whose prompts and locations have an effect."""
    base = tiny_model(encoder, large_logits=True, **(model or {}))
    torch.manual_seed(5)
    config = APPTConfig(**{"num_prompts": 3, "group_size": 10, "r": 8, "init_weights": False, **settings})
    return get_peft_model(base, config).eval()


def wrapped(model: nn.Module) -> list[APPTLayer]:
    """Return the layers with adapters."""
    return [module for module in model.modules() if isinstance(module, APPTLayer)]


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
        for layer in wrapped(model)
    ]
    answer(model)
    for hook in hooks:
        hook.remove()
    return seen


def plain_locations(centers: torch.Tensor, relative: nn.Linear, location: nn.Linear) -> torch.Tensor:
    """Return the locations of one cloud's `(tokens, 3)`, pair by pair."""
    rows = []
    for own in centers:
        features = torch.stack([relative(other - own).relu() for other in centers])  # (tokens, r)
        rows.append(location(features.amax(dim=0)))
    return torch.stack(rows)


@pytest.mark.parametrize("tokenizer", [{}, PATCH], ids=["point_pn", "patch"])
@torch.no_grad()
def test_the_first_layer_reads_tokens_locations_and_patches_of_the_same_embedding(tokenizer):
    # Behind a norm of the embeddings, which BERT has, the parts would not show.
    model = with_prompts(model={**tokenizer, "released": {"use_input_norm": False}})
    core = model.get_base_model().any2point
    points = clouds()
    tokens = core.point_tokenizer(points)
    # A tokenizer of larger patches with the same weights; its first centers are those of the tokens.
    settings = {**tokenizer, "num_tokens": 3, "tokenizer_neighbors": 10}
    other = tiny_model(**settings).any2point.point_tokenizer.eval()
    other.load_state_dict(core.point_tokenizer.modules_to_save["default"].state_dict())
    patches = other(points)
    torch.testing.assert_close(patches.centers, tokens.centers[:, :3])

    first = wrapped(model)[0]
    parts = first.appt_relative["default"], first.appt_location["default"]
    located = torch.stack([plain_locations(cloud, *parts) for cloud in normalize_centers(tokens.centers)])
    class_token = (core.class_token.token + core.class_token.position).expand(len(points), 1, -1)
    # No positions of the encoder: the class token alone keeps its own.
    expected = torch.cat([class_token, tokens.tokens + located, patches.tokens + located[:, :3]], dim=1)
    torch.testing.assert_close(inputs_of_layers(model)[0], expected, rtol=1e-4, atol=1e-5)


def test_prompts_go_on_or_enter_each_layer_anew():
    count = 1 + TOKENS
    carried, renewed = inputs_of_layers(with_prompts()), inputs_of_layers(with_prompts(insertion="every_layer"))
    assert [len(states[0]) for states in carried + renewed] == 2 * LAYERS * [count + 3]
    torch.testing.assert_close(carried[0], renewed[0])
    torch.testing.assert_close(renewed[1][:, count:], renewed[0][:, count:])
    assert not torch.allclose(carried[1][:, count:], carried[0][:, count:])
    only_last = with_prompts(layers_to_transform=[LAYERS - 1])
    assert [len(states[0]) for states in inputs_of_layers(only_last)] == [count + 3]


def test_positions_of_the_encoder_are_left_out_unless_they_are_kept():
    settings = {"released": {"position_injection": "every_layer"}}
    off, on = with_prompts(model=settings), with_prompts(model=settings, keep_positions=True)
    assert (answer(off) - answer(on)).abs().max() > 1e-4
    table = off.get_base_model().any2point.encoder.embeddings.position_embeddings.weight
    before = answer(off), answer(on)
    with torch.no_grad():
        table.add_(torch.randn(table.shape, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(answer(off), before[0])
    with off.disable_adapter():
        bare = answer(off)
    table = on.get_base_model().any2point.encoder.embeddings.position_embeddings.weight
    with torch.no_grad():
        table.add_(torch.randn(table.shape, generator=torch.Generator().manual_seed(3)))
    assert (answer(on) - before[1]).abs().max() > 1e-4
    # Without the adapter the model projects again.
    with on.disable_adapter():
        torch.testing.assert_close(answer(on), bare)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_step_reaches_all_trained_weights_around_every_modality(encoder, tmp_path):
    model = with_prompts(encoder)
    torch.testing.assert_close(answer(model)[:1], answer(model, clouds()[:1]), rtol=1e-4, atol=1e-5)
    assert (answer(model) - answer(tiny_model(encoder, large_logits=True))).abs().max() > 1e-4
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    assert train_step(model).isfinite()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            # Biases before a batch norm too: running statistics do not cancel them.
            assert weight.grad.abs().max() > 0, name
        else:
            assert weight.grad is None and torch.equal(weight, frozen[name]), name
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(tiny_model(encoder, large_logits=True), tmp_path)
    assert torch.equal(answer(opened), answer(model))


def test_the_generator_trains_the_shared_embedding_and_adds_no_weight():
    model = with_prompts(modules_to_save=["point_tokenizer"])
    own = [name for name, weight in model.named_parameters() if weight.requires_grad and "appt_" in name]
    assert len(own) == 4 and all(".layer.0." in name for name in own)
    norms = {name: tensor.clone() for name, tensor in model.named_buffers() if name.endswith("running_mean")}
    with_tokens = with_prompts(modules_to_save=["point_tokenizer"])
    for layer in wrapped(with_tokens):
        layer.enable_adapters(False)
    for one in (model, with_tokens):
        train_step(one)
    # The statistics of the norms are those of the tokens alone, whatever the prompts are.
    after, without = dict(model.named_buffers()), dict(with_tokens.named_buffers())
    trained = [name for name in norms if "modules_to_save" in name]
    assert trained and all(not torch.equal(after[name], norms[name]) for name in trained)
    for name in trained:
        torch.testing.assert_close(after[name], without[name])


@torch.no_grad()
def test_a_point_transformer_keeps_its_positions_and_reads_prompts_at_their_centers():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_groups": TOKENS}
    config = ActConfig(**sizes, group_size=4, num_labels=3, head_widths=[8], pooling=["cls", "prompt_mean"])
    model = get_peft_model(
        ActForPointCloudClassification(config), APPTConfig(num_prompts=3, group_size=10, init_weights=False)
    ).eval()
    core = model.get_base_model().act
    embedded, places = core.embed_patches(clouds(), 3, 10)
    torch.testing.assert_close(places, core.position_embed(core(clouds()).centers)[:, :3])
    first = wrapped(model)[0]
    parts = first.appt_relative["default"], first.appt_location["default"]
    centers = normalize_centers(core(clouds()).centers)
    located = torch.stack([plain_locations(cloud, *parts) for cloud in centers])
    expected = embedded + located[:, :3] + places
    torch.testing.assert_close(inputs_of_layers(model)[0][:, 1 + TOKENS :], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_two_adapters_have_prompts_of_their_own():
    model = with_prompts(modules_to_save=[])
    alone = answer(model)
    other = {"num_prompts": 2, "insertion": "every_layer", "keep_positions": True, "init_weights": False}
    model.add_adapter("other", APPTConfig(**other, group_size=12, modules_to_save=[]))
    torch.testing.assert_close(answer(model), alone)
    model.base_model.set_adapter(["other", "default"])
    states = inputs_of_layers(model)
    count = 1 + TOKENS
    assert [state.shape[1] for state in states] == LAYERS * [count + 5]
    # Behind the three that go on are the two that enter anew.
    torch.testing.assert_close(states[1][:, count + 3 :], states[0][:, count + 3 :])
    model.delete_adapter("other")
    model.set_adapter("default")
    torch.testing.assert_close(answer(model), alone)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"insertion": "once"}, "insertion='once'; expected one of 'first_layer', 'every_layer'"),
        ({"num_prompts": 0}, "num_prompts=0"),
        ({"group_size": 0}, "group_size=0"),
        ({"layers_to_transform": [0]}, "leave out .*1, to which the tokens go"),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        with_prompts(**settings)


def test_more_prompts_than_tokens_and_merging_are_refused():
    with pytest.raises(ValueError, match="num_prompts=9; expected at most 8, the number of tokens of a cloud"):
        answer(with_prompts(num_prompts=9))
    with pytest.raises(ValueError, match=r"appt cannot be merged into the encoder; use unload\(\)"):
        with_prompts().merge_and_unload()
    with raises(ValueError, naming="attention_axis"):
        with_prompts(model={"released": {"attention_axis": "batch"}})
