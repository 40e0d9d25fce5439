"""Clouds in the prompt of a language model: places, beams, and conversations that go on."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from hf_any3d.modeling.layers.cloud_prompts import (
    CloudGenerationMixin,
    EncodedClouds,
    fill_placeholders,
    repeat_by_sample,
    unread_clouds,
)
from hf_any3d.modeling.layers.forward_contract import CACHE

# The vocabulary has no row for the placeholder.
WORDS, CLOUD = 6, 9
FEATURES = torch.arange(20.0).view(5, 4) + 100
PROMPTS = torch.tensor([[1, CLOUD, CLOUD, CLOUD], [CLOUD, 5, 2, CLOUD]])


@pytest.fixture
def embed() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(WORDS, 4)


def clouds(*sizes: int) -> list[torch.Tensor]:
    return list(FEATURES[: sum(sizes)].split(sizes))


@pytest.mark.parametrize(
    "given", [FEATURES[None], FEATURES.view(5, 1, 4), clouds(3, 1, 1), clouds(2, 3), FEATURES[None].double()]
)
def test_placeholders_read_the_features_of_all_clouds_in_order(embed, given):
    found = fill_placeholders(PROMPTS, given, embed, CLOUD)
    expected = torch.stack(
        [
            torch.stack([embed.weight[1], *FEATURES[:3]]),
            torch.stack([FEATURES[3], embed.weight[5], embed.weight[2], FEATURES[4]]),
        ]
    )
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_features_and_words_get_their_own_gradients(embed):
    features = FEATURES.clone().requires_grad_()
    weights = torch.arange(1.0, 9).view(2, 4, 1)
    (fill_placeholders(PROMPTS, features[None], embed, CLOUD) * weights).sum().backward()
    assert features.grad[:, 0].tolist() == [2, 3, 4, 5, 8]
    assert embed.weight.grad[:, 0].tolist() == [0, 1, 7, 0, 0, 6]


def test_prompts_without_clouds_are_words(embed):
    words = torch.tensor([[1, 2], [3, 0]])
    for none in (None, FEATURES[:0].view(0, 2, 4)):
        assert torch.equal(fill_placeholders(words, none, embed, CLOUD), embed(words))
    # A placeholder that is generated stands for no cloud.
    step = torch.tensor([[CLOUD], [3]])
    assert torch.equal(fill_placeholders(step, None, embed, CLOUD), embed(torch.tensor([[0], [3]])))


@pytest.mark.parametrize(("given", "count"), [(FEATURES[None, :4], 4), (clouds(1, 1), 2), (None, 0)])
def test_other_numbers_of_features_than_placeholders_are_refused(embed, given, count):
    message = f"input_ids has 5 placeholders for point tokens (id 9); expected {count}, as many as the clouds have"
    with pytest.raises(ValueError, match=re.escape(message)):
        fill_placeholders(PROMPTS, given, embed, CLOUD)
    with pytest.raises(ValueError, match=re.escape("has 1 placeholders for point tokens (id 9); expected 2")):
        fill_placeholders(torch.tensor([[CLOUD]]), clouds(1, 1), embed, CLOUD)


def test_the_copies_of_a_sample_read_all_its_clouds():
    ids = torch.tensor([[CLOUD, 1, CLOUD], [1, 1, 1], [CLOUD, CLOUD, CLOUD]])
    repeated = repeat_by_sample(ids, clouds(1, 4), 2, CLOUD)
    assert [own[:, 0].tolist() for own in repeated] == [[100, 104]] * 2 + [[]] * 2 + [[108, 112, 116]] * 2


def test_only_the_clouds_of_new_turns_are_read():
    ids = torch.tensor([[CLOUD, 1, CLOUD, CLOUD], [1, CLOUD, 2, CLOUD]])
    given = clouds(1, 2, 2)
    unread = unread_clouds(ids, ids[:, 3:], given, CLOUD)
    assert [own[:, 0].tolist() for own in unread] == [[108], [116]]
    unread = unread_clouds(ids, ids[:, 2:], given, CLOUD)
    assert [own[:, 0].tolist() for own in unread] == [[104, 108], [116]]
    assert unread_clouds(ids, ids, given, CLOUD) is given
    assert unread_clouds(ids, torch.tensor([[1, 2], [2, 3]]), given, CLOUD) is None
    # Features of the new turn alone are given as they are.
    assert unread_clouds(ids, ids[:, 3:], (new := clouds(1, 1)), CLOUD) is new
    with pytest.raises(RuntimeError):
        unread_clouds(ids, ids[:, 3:], clouds(4), CLOUD)


class Language:
    """Stands for `GenerationMixin`: of the prompt, the last tokens are not in the cache."""

    new = 4

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        self.given = kwargs
        return {"input_ids": input_ids[:, -self.new :]}

    def _get_candidate_generator(self, generation_config, input_ids, *args, **kwargs):
        return generation_config, input_ids, args, kwargs


class Chat(CloudGenerationMixin, Language):
    """Encodes a cloud as its points."""

    config = SimpleNamespace(point_token_id=CLOUD, text_config=SimpleNamespace(hidden_size=4))

    def get_point_features(self, points):
        return [points + 0.5]


def cache(length: int) -> SimpleNamespace:
    return SimpleNamespace(get_seq_length=lambda: length)


def test_clouds_enter_with_the_prompt_and_then_are_in_the_cache():
    model, encoded = Chat(), {"point": EncodedClouds(FEATURES[None])}
    first = model.prepare_inputs_for_generation(
        PROMPTS, mm_encoder_outputs=encoded, is_first_iteration=True, inputs_embeds=FEATURES, past_key_values=3, more=1
    )
    assert first["mm_encoder_outputs"] is encoded and torch.equal(first["input_ids"], PROMPTS)
    assert model.given.pop("inputs_embeds") is FEATURES
    assert model.given == {CACHE: 3, "is_first_iteration": True, "more": 1}
    assert set(model.prepare_inputs_for_generation(PROMPTS, is_first_iteration=True)) == {"input_ids"}
    # Without a cache the whole prompt is read in every step.
    again = model.prepare_inputs_for_generation(PROMPTS, mm_encoder_outputs=encoded, use_cache=False)
    assert again["mm_encoder_outputs"] is encoded
    model.new = 1
    step = model.prepare_inputs_for_generation(PROMPTS, mm_encoder_outputs=encoded, past_key_values=cache(7))
    assert set(step) == {"input_ids"} and step["input_ids"].tolist() == [[CLOUD], [CLOUD]]


def test_drafts_have_no_clouds_and_an_assistant_encodes_those_of_its_model():
    model = Chat()
    model.new = 2
    features = {"point": EncodedClouds(FEATURES[None])}
    drafts = model.prepare_inputs_for_generation(PROMPTS, mm_encoder_outputs=features, past_key_values=cache(5))
    assert set(drafts) == {"input_ids"} and drafts["input_ids"].tolist() == [[0, 0], [2, 0]]
    start = model.prepare_inputs_for_generation(PROMPTS, mm_encoder_outputs=features, past_key_values=cache(0))
    assert start["mm_encoder_outputs"]["point"] is features["point"]
    assert start["input_ids"].tolist() == PROMPTS[:, 2:].tolist()
    own = {"point": EncodedClouds(FEATURES[None], {"points": FEATURES})}
    start = model.prepare_inputs_for_generation(PROMPTS, mm_encoder_outputs=own, past_key_values=cache(0))
    (encoded,) = start["mm_encoder_outputs"]["point"].pooler_output
    assert torch.equal(encoded, FEATURES + 0.5)


def encoded(model: Chat, name: str = "input_ids", mask_length: int | None = None, **given) -> EncodedClouds:
    """Encode clouds before the first step; what else is given stays."""
    config = GenerationConfig()
    if mask_length is not None:
        config._mask_length = mask_length
    made = model._maybe_prepare_encoder_kwargs_for_generation(PROMPTS, given | {"more": 1}, name, config)
    assert made.pop("more") == 1 and not {"points", "point_features"} & made.keys()
    assert made.keys() - {CACHE, "attention_mask"} == {"mm_encoder_outputs"}
    return made["mm_encoder_outputs"]["point"]


def test_clouds_are_encoded_once_before_the_first_step():
    model = Chat()
    given = {"more": 1, "points": None}
    none = model._maybe_prepare_encoder_kwargs_for_generation(PROMPTS, given, "input_ids", GenerationConfig())
    assert none == {"more": 1}
    by_points = encoded(model, points=FEATURES)
    assert torch.equal(by_points.pooler_output[0], FEATURES + 0.5) and by_points.inputs == {"points": FEATURES}
    given = clouds(3, 2)
    by_features = encoded(model, point_features=given)
    assert by_features.pooler_output is given and by_features.inputs is None
    both = encoded(model, point_features=given, points=FEATURES)
    assert both.pooler_output is given and both.inputs == {"points": FEATURES}


def test_clouds_in_the_cache_are_left_out_where_the_whole_conversation_is_given():
    model, given, whole = Chat(), clouds(3, 2), torch.ones(2, 4)
    usual = {"point_features": given, CACHE: cache(3)}
    for more in ({"attention_mask": whole}, {"mask_length": 4}):
        unread = encoded(model, **usual, **more).pooler_output
        assert [own[:, 0].tolist() for own in unread] == [[108], [116]]
    for more in (
        {"attention_mask": torch.ones(2, 7)},
        {"attention_mask": torch.ones(2, 7), "mask_length": 4},
        {"mask_length": 7},
        {},
        {"attention_mask": whole, "name": "inputs_embeds"},
        {"attention_mask": whole, CACHE: None},
    ):
        assert encoded(model, **usual | more).pooler_output is given


def test_beams_repeat_features_and_prompts_without_any_stay():
    model, none = Chat(), {"point": EncodedClouds()}
    assert model._expand_multimodal_outputs(PROMPTS, none, 3) is none
    made = model._expand_multimodal_outputs(PROMPTS, {"point": EncodedClouds(clouds(3, 2), {"points": 1})}, 2)["point"]
    assert [len(own) for own in made.pooler_output] == [3, 3, 2, 2] and made.inputs is None
    once = model._expand_multimodal_outputs(PROMPTS, {"point": EncodedClouds(FEATURES[None])})["point"]
    assert [len(own) for own in once.pooler_output] == [3, 2]
