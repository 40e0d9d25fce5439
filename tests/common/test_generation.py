"""Behavior of `generate` that users of transformers rely on, for MiniGPT-3D."""

import copy

import pytest
import torch

from tests.common.models import case_of, minigpt3d, prompts, relative_difference, settle, varied_clouds
from tests.common.refusals import check_refusal
from tests.errors import raises
from tests.modeling.minigpt3d.tiny_model import PLACES, POINT_TOKEN

NEVER = 10_000
"""An id of no token, so that generation does not end early."""
PAD, LENGTH = 0, 7
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def model():
    made = minigpt3d()
    settle(made, case_of(type(made)))
    with torch.no_grad():
        made.language_model.lm_head.weight.mul_(3)  # sharper, so that samples of two runs rarely coincide
    made.generation_config.eos_token_id = NEVER
    made.generation_config.pad_token_id = PAD
    return made.eval()


def answers(model, inputs, **settings):
    torch.manual_seed(settings.pop("seed", 0))
    with torch.no_grad():
        return model.generate(**inputs, **({"max_new_tokens": LENGTH, "do_sample": False} | settings))


def by_hand(model, inputs, count: int = LENGTH) -> torch.Tensor:
    """Return the most likely tokens, by one complete forward pass each."""
    ids = inputs["input_ids"]
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=ids, points=inputs["points"], attention_mask=torch.ones_like(ids)).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids


def test_greedy_answers_are_the_most_likely_tokens(model):
    inputs = prompts()
    expected = by_hand(model, inputs)
    made = answers(model, inputs)
    assert torch.equal(made, expected)
    output = made[:, inputs["input_ids"].shape[1] :]
    assert len({tuple(row.tolist()) for row in output}) == 3 and all(len(row.unique()) > 1 for row in output)
    other = answers(model, inputs | {"points": varied_clouds(3, 20, 6, seed=9)})
    assert not torch.equal(other, made)


def test_the_cache_changes_no_answer(model):
    inputs = prompts()
    assert torch.equal(answers(model, inputs, use_cache=False), answers(model, inputs, use_cache=True))


def test_several_samples_of_a_prompt_differ_and_keep_their_clouds(model):
    inputs = prompts(2)
    made = answers(model, inputs, do_sample=True, num_return_sequences=3)
    assert made.shape[0] == 6 and len({tuple(row.tolist()) for row in made}) == 6
    assert torch.equal(made[:, : inputs["input_ids"].shape[1]], inputs["input_ids"].repeat_interleave(3, dim=0))
    # Beams of each cloud do not depend on the other clouds.
    greedy = answers(model, inputs, num_beams=3, num_return_sequences=3)
    single = torch.cat(
        [
            answers(
                model,
                {name: value[row : row + 1] for name, value in inputs.items()},
                num_beams=3,
                num_return_sequences=3,
            )
            for row in range(2)
        ]
    )
    assert torch.equal(greedy, single)


def padded(rows: list[dict]) -> dict:
    """Prompts of unequal length, padded on the left."""
    length = max(row["input_ids"].shape[1] for row in rows)

    def pad(values: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(values, (length - values.shape[1], 0), value=value)

    return {
        "input_ids": torch.cat([pad(row["input_ids"], PAD) for row in rows]),
        "attention_mask": torch.cat([pad(row["attention_mask"], 0) for row in rows]),
        "points": torch.cat([row["points"] for row in rows]),
    }


@pytest.mark.parametrize("beams", [1, 3])
def test_padding_on_the_left_and_neighbors_change_no_answer(model, beams):
    rows = [prompts(1, seed) for seed in (1, 2, 3)]
    for row, cut in zip(rows, (0, 1, 2), strict=True):
        row["input_ids"], row["attention_mask"] = (row[name][:, cut:] for name in ("input_ids", "attention_mask"))
    together = answers(model, padded(rows), num_beams=beams)[:, -LENGTH:]
    for number, row in enumerate(rows):
        assert torch.equal(answers(model, row, num_beams=beams)[0, -LENGTH:], together[number])


def test_features_and_embeddings_replace_clouds(model):
    inputs = prompts()
    expected = answers(model, inputs)
    with torch.no_grad():
        features = model.get_point_features(inputs["points"])
        words = inputs["input_ids"].masked_fill(inputs["input_ids"] == POINT_TOKEN, 0)
        embeds = model.get_input_embeddings()(words)
        embeds[:, 2 : 2 + PLACES] = features
    from_features = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"point_features": features}
    assert torch.equal(answers(model, from_features), expected)
    from_embeds = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    assert torch.equal(answers(model, from_embeds), expected[:, -LENGTH:])


def test_a_cloud_needs_placeholders_in_the_prompt(model):
    words = {"input_ids": torch.randint(2, 24, (2, 5), generator=torch.Generator().manual_seed(0))}
    assert answers(model, words).shape == (2, 5 + LENGTH)
    with raises(ValueError, naming="input_ids"):
        answers(model, words | {"points": prompts(2)["points"]})
    with raises(ValueError, naming="inputs_embeds"):
        model(inputs_embeds=torch.zeros(2, 5, 16), points=prompts(2)["points"])


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["text only", "another cloud"])
def test_a_conversation_continues_from_its_cache(model, again):
    first = prompts(1)
    with torch.no_grad():
        output = model.generate(**first, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    more = torch.randint(2, 24, (1, 3), generator=torch.Generator().manual_seed(1))
    if again:
        more = torch.cat([more, torch.full((1, PLACES), POINT_TOKEN), more], dim=1)
    ids = torch.cat([output.sequences, more], dim=1)
    clouds = torch.cat([first["points"], varied_clouds(1, 20, 6, seed=8)]) if again else first["points"]
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "points": clouds}
    expected = answers(model, whole)
    for settings in ({}, {"prefill_chunk_size": 2}):
        cached = {"past_key_values": copy.deepcopy(output.past_key_values)}
        assert torch.equal(answers(model, whole | cached, **settings), expected)
    for settings in ({"assistant_model": copy.deepcopy(model)}, {"prompt_lookup_num_tokens": 2}):
        cached = {"past_key_values": copy.deepcopy(output.past_key_values)}
        with check_refusal("drafts after a cache", "MiniGPT3DForConditionalGeneration"):
            answers(model, whole | cached, **settings)
    logits = {}
    for name, more in (
        ("whole", {}),
        ("continued", {"past_key_values": copy.deepcopy(output.past_key_values)}),
        ("other clouds", {"points": varied_clouds(len(clouds), 20, 6, seed=33)}),
    ):
        asked = {"return_dict_in_generate": True, "output_logits": True}
        logits[name] = torch.stack(answers(model, whole | more, **asked).logits)
    assert relative_difference(logits["continued"], logits["whole"]) < 1e-4
    assert relative_difference(logits["other clouds"], logits["whole"]) > 1e-2


def test_scores_states_and_weights_come_with_the_answer(model):
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    output = answers(eager, prompts(), output_hidden_states=True, output_attentions=True, **asked)
    assert torch.equal(output.sequences, answers(model, prompts()))
    assert len(output.scores) == len(output.hidden_states) == len(output.attentions) == LENGTH
    assert len(output.hidden_states[0]) == 3 and output.hidden_states[1][0].shape == (3, 1, 16)
    prompt = prompts()["input_ids"].shape[1]
    torch.testing.assert_close(output.attentions[1][0].sum(dim=-1), torch.ones(3, 2, 1))
    assert output.attentions[1][0].shape[-1] == prompt + 1
    with torch.no_grad():
        first = model(**prompts()).logits[:, -1]
    torch.testing.assert_close(output.logits[0], first, rtol=1e-4, atol=1e-4)


def test_static_cache_gives_the_same_answer(model):
    with check_refusal("static cache", "MiniGPT3DForConditionalGeneration") as is_supported:
        made = answers(model, prompts(), cache_implementation="static")
    if is_supported:
        assert torch.equal(made, answers(model, prompts()))


class Recorded:
    """How often a language model ran, and the most likely token after each of these runs."""

    def __init__(self, language_model):
        self.inputs, self.logits = [], []
        language_model.register_forward_hook(self.record, with_kwargs=True)

    def record(self, module, args, kwargs, output):
        self.inputs.append(kwargs["inputs_embeds"])
        self.logits.append(output.logits)


@pytest.mark.slow
@pytest.mark.parametrize("helper", ["itself", "a copy", "smaller", "another width", "from features"])
def test_an_assistant_model_may_draft_the_answer(model, helper):
    inputs = prompts(1)
    expected = answers(model, inputs)
    main, drafting = copy.deepcopy(model), model
    if helper == "smaller":
        drafting = minigpt3d(point_config=model.config.point_config, text_config=smaller(model, num_hidden_layers=1))
    elif helper == "another width":
        drafting = minigpt3d(text_config=smaller(model, hidden_size=24))
    elif helper == "itself":
        drafting = main
    elif helper == "from features":
        with torch.no_grad():
            features = model.get_point_features(inputs.pop("points"))
        inputs["point_features"] = features
    drafting = copy.deepcopy(drafting).eval() if helper != "itself" else main
    drafting.generation_config.num_assistant_tokens = 3
    drafting.generation_config.assistant_confidence_threshold = 0
    runs = Recorded(main.language_model)
    assert torch.equal(answers(main, inputs, assistant_model=drafting), expected)
    if helper in ("a copy", "from features"):
        # Drafts are right, so that main runs once for four tokens: the assistant has seen the cloud.
        assert len(runs.logits) == 2


def smaller(model, **changes):
    return model.config.text_config.to_dict() | changes


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_a_language_model_may_draft_the_answer(model, known):
    main = copy.deepcopy(model)
    place = 23 if known else POINT_TOKEN
    main.config.point_token_id = place
    inputs = prompts(1)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == POINT_TOKEN, place)
    inputs["input_ids"][0, :2] = 5  # 23 only where the cloud is
    inputs["input_ids"][0, -4:] = torch.tensor([6, 7, 8, 9])
    expected = answers(main, inputs)
    subject = "a language model" if known else "a language model without the placeholder"
    with check_refusal("assisted generation", subject) as is_supported:
        made = answers(main, inputs, assistant_model=copy.deepcopy(model.language_model))
    if is_supported:
        assert torch.equal(made, expected)


WAYS = {
    "drafts": lambda model: {"assistant_model": copy.deepcopy(model)},
    "lookup": lambda model: {"prompt_lookup_num_tokens": 2},
    "no cache": lambda model: {"use_cache": False},
    "chunks": lambda model: {"prefill_chunk_size": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_placeholder_in_the_answer_stands_for_no_cloud_whichever_way_it_is_read(model, way):
    main = copy.deepcopy(model)
    inputs = prompts(1)
    place = int(answers(main, inputs)[0, -3])  # a token that the answer has
    ids = inputs["input_ids"].masked_fill(inputs["input_ids"] == place, (place + 1) % 22 + 2)
    inputs["input_ids"] = ids.masked_fill(ids == POINT_TOKEN, place)
    main.config.point_token_id = place
    expected = answers(main, inputs)
    assert place in expected
    assert torch.equal(answers(main, inputs, **WAYS[way](main)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_prompt_may_be_read_in_chunks(model, size, settings):
    # With padding, and clouds at other places of the rows.
    rows = [prompts(1, seed) for seed in (1, 2)]
    rows[1] = {name: value[:, 1:] if name != "points" else value for name, value in rows[1].items()}
    inputs = padded(rows)
    expected = answers(model, inputs, **settings)
    whole = copy.deepcopy(model)
    runs = Recorded(whole.language_model)
    assert torch.equal(answers(whole, inputs, prefill_chunk_size=size, **settings), expected)
    assert runs.inputs[0].shape[1] == min(size, inputs["input_ids"].shape[1])


def test_chunks_are_joined_in_the_cache(model):
    with check_refusal("prefill in chunks", "use_cache=False"):
        answers(model, prompts(), prefill_chunk_size=3, use_cache=False)


def test_prompt_lookup_may_draft_the_answer(model):
    with check_refusal("prompt lookup", "MiniGPT3DForConditionalGeneration") as is_supported:
        made = answers(model, prompts(1), prompt_lookup_num_tokens=2)
    if is_supported:
        assert torch.equal(made, answers(model, prompts(1)))


def test_unknown_arguments_are_refused(model):
    with raises((TypeError, ValueError), naming="pionts"):
        answers(model, prompts(1) | {"pionts": torch.zeros(1, 3, 6)})


@pytest.mark.parametrize("text", ["llama", "gpt2"])
def test_other_language_models_are_not_affected_by_padding(text):
    model = minigpt3d(text=text).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = NEVER, PAD
    rows = [prompts(1, seed) for seed in (1, 2)]
    rows[1] = {name: value[:, 2:] if name != "points" else value for name, value in rows[1].items()}
    together = answers(model, padded(rows))[:, -LENGTH:]
    for number, row in enumerate(rows):
        assert torch.equal(answers(model, row)[0, -LENGTH:], together[number])
