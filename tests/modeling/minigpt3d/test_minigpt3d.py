import pytest
import torch

from hf_any3d import MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.minigpt3d.lora import merge_lora
from tests.modeling.minigpt3d.tiny_model import PLACES, POINT_TOKEN, TEXTS, clouds, tiny_model

CLOUD = [POINT_TOKEN] * PLACES


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def with_lora(model: MiniGPT3DForConditionalGeneration) -> MiniGPT3DForConditionalGeneration:
    """Give LoRA an effect and query experts different values."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".low_rank_b" in name or ".queries." in name:
            parameter.data.normal_(std=0.3, generator=generator)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_any_causal_language_model_takes_clouds(text):
    model = tiny_model(text, text_lora=None)
    prompt = ids([2, *CLOUD, 5, 6])
    one, other = (model(prompt, points=torch.stack(clouds(40, seed=seed))).logits for seed in (1, 2))
    assert one.shape == (1, 6, 24)
    assert torch.equal(one[:, 0], other[:, 0])
    assert (one[:, 1:] != other[:, 1:]).any(dim=-1).all()
    generated = model.generate(input_ids=prompt, points=torch.stack(clouds(40)), max_new_tokens=4, do_sample=False)
    assert generated.shape[1] <= 10


@torch.no_grad()
def test_clouds_of_different_sizes_are_encoded_as_they_are_alone():
    model = tiny_model()
    various = clouds(40, 25, 40)
    together = model.get_point_features(various)
    alone = torch.cat([model.get_point_features(cloud[None]) for cloud in various])
    assert together.shape == (3, PLACES, 16)
    torch.testing.assert_close(together, alone)


@torch.no_grad()
def test_clouds_replace_their_placeholders_in_order():
    model = tiny_model()
    features = model.get_point_features(clouds(40, 25, 30))
    both = model(ids([2, *CLOUD, 5, *CLOUD, 6], [2, 3, 4, *CLOUD, 5, 6, 7]), points=clouds(40, 25, 30)).logits
    embed = model.get_input_embeddings()
    rows = [
        torch.cat([embed(ids([2])[0]), features[0], embed(ids([5])[0]), features[1], embed(ids([6])[0])]),
        torch.cat([embed(ids([2, 3, 4])[0]), features[2], embed(ids([5, 6, 7])[0])]),
    ]
    for row, logits in zip(rows, both, strict=False):
        torch.testing.assert_close(model(inputs_embeds=row[None]).logits[0], logits[: len(row)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (1, "has 6 placeholders for point tokens .id 99.; expected 3"),
        (0, "has 6 placeholders for point tokens .id 99.; expected 0"),
    ],
)
def test_clouds_and_placeholders_must_match(given, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        model(ids([2, *CLOUD, *CLOUD, 6]), points=clouds(*[40] * given) if given else None)


@torch.no_grad()
def test_every_cloud_is_encoded_once_for_all_tokens_and_beams():
    model, read = tiny_model(), []
    model.point_encoder.register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0])))
    model.generate(ids([2, *CLOUD, 5]), points=torch.stack(clouds(40)), max_new_tokens=6, num_beams=3)
    assert read == [1]


def test_missing_weights_of_a_loaded_model_are_initialized_as_in_a_new_one():
    model = tiny_model()
    state = {
        name: kept for name, kept in model.state_dict().items() if "low_rank_" not in name and "queries" not in name
    }
    opened = MiniGPT3DForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=state)
    for started in (model, opened):
        first, *others = started.bridge.experts.queries
        assert 0.01 < first.std() < 0.03 and all(torch.equal(first, queries) for queries in others)
        for name, parameter in started.named_parameters():
            if ".low_rank_a" in name:
                assert 0.5 < parameter.std() * (3 * parameter.shape[1]) ** 0.5 < 1.5, name
            assert ".low_rank_b" not in name or not parameter.any(), name


def test_merged_lora_gives_the_same_output():
    model = with_lora(tiny_model(use_query_experts=True))
    prompt, points = ids([2, *CLOUD, 5]), clouds(40)
    with torch.no_grad():
        before = model(prompt, points=points).logits
        merged = merge_lora(model)
        torch.testing.assert_close(merged(prompt, points=points).logits, before, rtol=1e-4, atol=1e-5)
    assert not [name for name, _ in merged.named_parameters() if "low_rank" in name or ".linear." in name]
    assert merged.config.text_lora is merged.config.qformer_lora is None


def test_a_frozen_point_encoder_stays_in_eval_mode():
    model = tiny_model().train()
    assert model.training and model.bridge.training and not model.point_encoder.training
    model.point_encoder.requires_grad_(True)
    assert model.train().point_encoder.training


def test_load_balancing_loss_is_scaled_with_the_batch_share():
    model = tiny_model(use_query_experts=True, load_balancing_weight=0.5)
    prompt, points = ids([2, *CLOUD, 5, 6, 7]), clouds(40)
    labels = prompt.masked_fill(prompt == POINT_TOKEN, -100)
    full = model(prompt, points=points, labels=labels)
    parts = model(prompt, points=points, labels=labels, num_items_in_batch=torch.tensor(2 * 3))
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    again = model(prompt, points=points, shift_labels=shifted, num_items_in_batch=torch.tensor(2 * 3))
    assert torch.equal(again.loss, parts.loss)
    model.config.load_balancing_weight = 0.0
    plain = model(prompt, points=points, labels=labels)
    assert full.loss > plain.loss
    torch.testing.assert_close(parts.loss * 2, full.loss)
    assert full.router_logits.shape == (1, 4)
