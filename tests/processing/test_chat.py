import numpy as np
import pytest
import torch

from hf_any3d import MiniGPT3DProcessor, PointCloudProcessor
from hf_any3d.chat import RELEASED_POINTS
from hf_any3d.data.files import PointCloudData, write_point_cloud
from tests.chat.tiny_tokenizers import BOS, byte_tokenizer, character_tokenizer
from tests.errors import raises
from tests.modeling.minigpt3d.conversations import POINT_TOKEN
from tests.modeling.minigpt3d.reference_case import ReferenceCase

PLACES = 32


def new_processor(tokenizer=None, num_points=64, **changes):
    points = PointCloudProcessor(**{**RELEASED_POINTS, "num_points": num_points})
    changes = {"point_token_id": POINT_TOKEN, **changes}
    return MiniGPT3DProcessor(points, tokenizer or character_tokenizer(), **changes)


@pytest.fixture(scope="module")
def processor():
    return new_processor()


def cloud(seed=0, count=64):
    return np.random.default_rng(seed).random((count, 6), dtype=np.float32)


def question(text, *clouds):
    parts = [{"type": "point_cloud", "points": one} for one in clouds]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def answer(text):
    return {"role": "assistant", "content": text}


def spelled(ids):
    """Text of ids of the character tokenizer, a cloud as @."""
    text = "".join("@" if token == POINT_TOKEN else BOS if token == 128 else chr(token) for token in ids)
    return text.replace("@" * PLACES, "@")


def test_a_question_becomes_ids_and_points(processor):
    batch = processor.apply_chat_template([question("What is this?", cloud())], tokenize=True)
    assert set(batch) == {"input_ids", "attention_mask", "points"}
    assert spelled(batch["input_ids"][0]) == f"{BOS}[INST] <PC>@</PC> What is this?  [/INST]"
    assert batch["attention_mask"].all()
    assert torch.equal(batch["points"], processor.feature_extractor(cloud())["points"])
    ids = processor.apply_chat_template([question("What is this?", cloud())], tokenize=True, return_dict=False)
    assert torch.equal(ids, batch["input_ids"])


def test_every_way_to_name_a_cloud(processor, tmp_path):
    points, colors = cloud()[:, :3], cloud()[:, 3:]
    path = tmp_path / "chair.npz"
    write_point_cloud(path, PointCloudData(points, colors))
    parts = [
        {"path": str(path)},
        {"points": cloud()},
        {"points": points, "colors": colors},
        {"point_cloud": path},
        {"point_cloud": {"points": torch.from_numpy(cloud())}},
        {"points": points.tolist(), "colors": colors.tolist(), "path": None},
    ]
    for part in parts:
        messages = [{"role": "user", "content": [{"type": "point_cloud", **part}, {"type": "text", "text": "?"}]}]
        given = processor.apply_chat_template(messages, tokenize=True)["points"]
        torch.testing.assert_close(given, processor.feature_extractor(cloud())["points"], atol=1e-6, rtol=0)
    bare = [{"role": "user", "content": [{"type": "point_cloud"}, {"type": "text", "text": "?"}]}]
    given = processor.apply_chat_template(bare, tokenize=True, point_clouds=[cloud()])["points"]
    assert torch.equal(given, processor.feature_extractor(cloud())["points"])


def test_colors_count_to_255_and_missing_ones_are_black(processor):
    bright = np.concatenate([cloud()[:, :3], np.full((64, 3), 255)], axis=1)
    assert (processor.read_points([bright])[0][:, 3:] == 1).all()
    assert (processor.read_points([cloud()[:, :3]])[0][:, 3:] == 0).all()


def test_several_clouds_in_one_conversation_and_in_a_batch(processor):
    clouds = [cloud(seed) for seed in range(4)]
    first = [question("Which is older?", *clouds[:2]), answer("This."), question("And now?", clouds[2])]
    batch = processor.apply_chat_template([first, [question("?", clouds[3])]], tokenize=True)
    prepared = processor.feature_extractor(clouds)["points"]
    assert torch.equal(batch["points"], prepared)
    assert spelled(batch["input_ids"][0]) == (
        f"{BOS}[INST] <PC>@</PC> <PC>@</PC> Which is older?  [/INST]This.###{BOS}[INST] <PC>@</PC> And now?  [/INST]"
    )


def stored_samples(case):
    """Conversations of a stored run, as messages."""
    single, several = case.manifest["input"]["single"], case.manifest["input"]["conv"]
    rows = {
        "single": [([q], [a]) for q, a in zip(single["instruction_input"], single["answer"], strict=True)],
        "conv": [(q.split("!@#"), a.split("!@#")) for q, a in zip(several["conv_q"], several["conv_a"], strict=True)],
    }
    tag = "<PC><PointCloudHere></PC> "
    for name, samples in rows.items():
        conversations = []
        for questions, answers in samples:
            messages = []
            for text, reply in zip(questions, answers, strict=True):
                clouds = [cloud()] if tag in text else []
                messages += [question(text.removeprefix(tag).removesuffix(" "), *clouds), answer(reply)]
            conversations.append(messages)
        yield name, conversations


def test_training_batches_are_the_released_ones():
    processor, case = new_processor(hide_inner_bos=True), ReferenceCase("llm")
    for name, conversations in stored_samples(case):
        batch = processor.apply_chat_template(conversations, tokenize=True, return_labels=True)
        length = batch["labels"].shape[1]
        for ours, theirs in ((batch["labels"], "labels"), (batch["attention_mask"], "attention_mask")):
            stored = case[f"{name}.{theirs}"].long()
            assert torch.equal(ours, stored[:, :length]), name
            # The released batches are as long as the longest prompt plus the longest answer.
            assert (stored[:, length:] == (-100 if theirs == "labels" else 0)).all()


def test_later_questions_keep_their_start_token_by_default(processor):
    messages = [question("a", cloud()), answer("b"), question("c"), answer("d")]
    batch = processor.apply_chat_template(messages, tokenize=True, return_labels=True)
    assert batch["attention_mask"].all()
    hidden = new_processor(hide_inner_bos=True).apply_chat_template(messages, tokenize=True, return_labels=True)
    assert (hidden["attention_mask"][0] == 0).nonzero().flatten().tolist() == [
        (batch["input_ids"][0] == 128).nonzero().flatten().tolist()[1]
    ]
    assert spelled(batch["labels"][0][batch["labels"][0] != -100]) == "b###d###"


def test_answers_are_cut_without_splitting_a_cloud():
    messages = [question("a", cloud()), answer("0123456789"), question("c", cloud(1)), answer("d")]
    for most, expected in ((4, "0123"), (13, "0123456789###"), (30, "0123456789###")):
        processor = new_processor(max_answer_tokens=most)
        batch = processor.apply_chat_template(messages, tokenize=True, return_labels=True)
        labels = batch["labels"][0]
        assert spelled(labels[labels != -100]) == expected
        assert (batch["input_ids"] == POINT_TOKEN).sum() == PLACES and len(batch["points"]) == 1
    asked = new_processor(max_answer_tokens=4).apply_chat_template(messages[:3], tokenize=True)
    assert spelled(asked["input_ids"][0]).endswith("c  [/INST]")


def test_no_token_reaches_across_clouds_and_answers():
    processor = new_processor(byte_tokenizer("><", "]R", "ed"), point_token_id=900)
    messages = [question("?", cloud()), answer("Red")]
    labels = processor.apply_chat_template(messages, tokenize=True, return_labels=True)["labels"][0]
    assert processor.tokenizer.convert_ids_to_tokens(labels[labels != -100]) == ["R", "ed", "#", "#", "#"]
    ids = processor.apply_chat_template(messages, tokenize=True)["input_ids"][0].tolist()
    tokens = processor.tokenizer.convert_ids_to_tokens([token for token in ids if token != 900])
    assert "><" not in tokens and "]R" not in tokens
    # The released demo tokenizes a conversation as one text.
    whole = processor.apply_chat_template(messages, "demo", tokenize=True)["input_ids"][0].tolist()
    assert "]R" in processor.tokenizer.convert_ids_to_tokens([token for token in whole if token != 900])


def test_labels_need_a_template_with_answers(processor):
    for messages, template in (([question("a"), answer("b")], "demo"), ([question("a")], "training")):
        with raises(ValueError, naming="no answers"):
            processor.apply_chat_template(messages, template, tokenize=True, return_labels=True)


def test_an_answer_can_be_started(processor):
    messages = [question("What is this?", cloud()), answer("This is")]
    text = processor.apply_chat_template(messages, continue_final_message=True)
    assert text.endswith("[/INST]This is")
    batch = processor.apply_chat_template(messages, tokenize=True, continue_final_message=True)
    assert spelled(batch["input_ids"][0]).endswith("[/INST]This is")


def test_templates_are_taken_by_name_or_as_they_are(processor):
    messages = [question("Hm?")]
    assert processor.apply_chat_template(messages) == processor.apply_chat_template(messages, "training")
    assert processor.apply_chat_template(messages, "{{ messages[0]['role'] }}") == "user"
    with raises(ValueError, naming="chat_template"):
        processor.apply_chat_template(messages, "demos")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user", "content": [{"type": "image"}]}], "'image'"),
        ([question("\ud800")], "surrogates"),
        ([question("<PointCloudHere>")], "a text has '<PointCloudHere>' in it"),
        ([{"role": "user", "content": [{"type": "point_cloud"}]}], "1 places for point clouds and 0 clouds"),
        ([question("a", cloud()[:1])], "1 point; expected at least"),
        ([{"role": "user", "content": [{"type": "point_cloud", "path": "no.ply"}]}], "no.ply"),
        ("What?", "conversation: expected messages"),
        ([[question("a")], []], "conversation: expected messages"),
    ],
)
def test_invalid_conversations_are_refused(processor, messages, message):
    with pytest.raises((ValueError, OSError), match=message):
        processor.apply_chat_template(messages, tokenize=True)


def test_roles_are_user_and_assistant(processor):
    with raises(ValueError, naming="'tool'"):
        processor.apply_chat_template([{"role": "tool", "content": "Be brief."}])


def test_system_messages_precede_the_first_question(processor):
    system = {"role": "system", "content": "Be brief."}
    batch = processor.apply_chat_template([system, question("What is this?", cloud())], tokenize=True)
    assert spelled(batch["input_ids"][0]) == f"{BOS}[INST] <PC>@</PC> Be brief.\n\nWhat is this?  [/INST]"
    own = "{% for m in messages %}{{ m['role'] == 'system' }} {% endfor %}"
    assert processor.apply_chat_template([system, question("a")], own) == "True False "
    with_cloud = {"role": "system", "content": question("a", cloud())["content"]}
    for wrong in ([system], [question("a"), system], [system, answer("b")], [with_cloud, question("a")]):
        with pytest.raises(Exception, match="no question follows|role 'system'"):
            processor.apply_chat_template(wrong)


def test_answer_masks_are_returned_on_request(processor):
    messages = [question("What is this?", cloud()), answer("A lamp."), question("Old?"), answer("Yes.")]
    batch = processor.apply_chat_template(
        [messages, messages[:2]], tokenize=True, return_assistant_tokens_mask=True, return_labels=True
    )
    assert torch.equal(batch["assistant_masks"], (batch["labels"] != -100).long()) and batch["assistant_masks"].any()
    first = batch["input_ids"][0][batch["assistant_masks"][0].bool()]
    assert spelled(first) == "A lamp.###Yes.###"
    with raises(ValueError, naming="no answers"):
        processor.apply_chat_template(messages, "demo", tokenize=True, return_assistant_tokens_mask=True)
    with raises(ValueError, naming="expected tokenize=True"):
        processor.apply_chat_template(messages, return_assistant_tokens_mask=True)


LONG = "<PointCloudHere> What is this, and what is it made of?"
SHORT = "<PointCloudHere> Old?"


def test_prompts_are_truncated_and_padded_as_requested(processor):
    whole = processor([LONG, SHORT], [cloud(), cloud(1)])
    width = whole["input_ids"].shape[1]
    cut = processor([LONG, SHORT], [cloud(), cloud(1)], truncation=True, max_length=40)
    assert cut["input_ids"].shape == (2, 40) and torch.equal(cut["input_ids"][0], whole["input_ids"][0, :40])
    wide = processor([LONG, SHORT], [cloud(), cloud(1)], padding="max_length", max_length=width + 5)
    assert wide["input_ids"].shape == (2, width + 5) and not wide["attention_mask"][:, :5].any()
    assert torch.equal(wide["input_ids"][:, 5:], whole["input_ids"])
    same = processor([LONG, SHORT], [cloud(), cloud(1)], text_kwargs={"truncation": True, "max_length": 40})
    assert torch.equal(same["input_ids"], cut["input_ids"])
    messages = [question("What is this, and what is it made of?", cloud())]
    given = {"truncation": True, "max_length": 50}
    for where in (given, {"processor_kwargs": given}, {"processor_kwargs": {"text_kwargs": given}}):
        assert processor.apply_chat_template(messages, tokenize=True, **where)["input_ids"].shape == (1, 50)
    lists = processor([LONG, SHORT], [cloud(), cloud(1)], padding=False, return_tensors=None)
    assert [len(ids) for ids in lists["input_ids"]] == whole["attention_mask"].sum(dim=1).tolist()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"max_length": 40}, ValueError, "expected max_length with"),
        ({"truncation": True}, ValueError, "expected max_length with"),
        ({"truncation": True, "max_length": 20}, ValueError, "max_length=20 cuts places of a point cloud"),
        ({"padding": False}, ValueError, "input_ids"),
        ({"text_kwargs": {"stride": 3}}, TypeError, "stride"),
        ({"max_lenght": 3}, TypeError, "max_lenght"),
    ],
)
def test_lengths_without_an_effect_are_refused(processor, given, error, message):
    with pytest.raises(error, match=message):
        processor([LONG, SHORT], [cloud(), cloud(1)], **given)


def test_arguments_that_no_template_uses_are_refused(processor):
    messages = [question("Hm?")]
    with raises(TypeError, naming="'add_generation_promt'"):
        processor.apply_chat_template(messages, add_generation_promt=True)
    assert processor.apply_chat_template(messages, "{{ mood }}", mood="calm") == "calm"


def test_complete_prompts_are_accepted(processor):
    messages = [question("What is this?", cloud())]
    text = processor.apply_chat_template(messages, "evaluation")
    batch, ours = processor(text, cloud()), processor.apply_chat_template(messages, "evaluation", tokenize=True)
    assert all(torch.equal(batch[name], ours[name]) for name in ours)
    with pytest.raises(ValueError, match="text has 1 places for point clouds and points 0 clouds"):
        processor(text)


def test_a_users_text_never_becomes_a_special_token(processor):
    token = processor.tokenizer.eos_token
    for role in ("user", "system"):
        conversation = [{"role": role, "content": f"end {token} it"}, {"role": "user", "content": "What?"}]
        with pytest.raises(ValueError, match="a special token of the model; expected plain words"):
            processor.prompts([conversation[-2:]], add_generation_prompt=True)
