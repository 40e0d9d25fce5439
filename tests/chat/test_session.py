import pytest
import torch

from hf_any3d import ChatSession
from hf_any3d.processing.chat_templates import PLACE_MARK
from tests.chat.tiny_chat_model import ForcedAnswer, cloud, tiny_chat_pipeline
from tests.errors import raises


@pytest.fixture(scope="module")
def pipe():
    return tiny_chat_pipeline()


@pytest.fixture
def read(pipe):
    """Counts tokens read by the language model and clouds read by the point encoder."""
    counts = {"tokens": 0, "clouds": 0}

    def count_tokens(_, __, inputs):
        counts["tokens"] += inputs["inputs_embeds"].shape[1]

    def count_clouds(_, inputs, __):
        counts["clouds"] += len(inputs[0])

    pipe.answerer.forget()
    hooks = [
        pipe.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: count_tokens(module, args, kwargs), with_kwargs=True
        ),
        pipe.model.point_encoder.register_forward_hook(count_clouds),
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def whole(pipe, session, **generation):
    """The last answer of a conversation, generated without a cache."""
    result = pipe(session.messages[:-1], **generation)
    return result[0]["generated_text"][-1]["content"]


@pytest.mark.slow
@pytest.mark.parametrize("template", ["training", "evaluation", "demo"])
def test_cached_answers_equal_those_to_the_complete_conversation(pipe, template):
    session = ChatSession(pipe, cloud(), chat_template=template)
    for text, further in (("What is this?", None), ("And that?", cloud(1)), ("Which is older?", None)):
        answer = session.ask(text, further)
        assert answer and answer == whole(pipe, session, chat_template=template)
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 3


def test_sessions_work_with_the_released_language_model():
    pipe = tiny_chat_pipeline(text="normed_phi")
    session = ChatSession(pipe, cloud())
    for text in ("What is this?", "Why?"):
        assert session.ask(text) == whole(pipe, session)


def test_cached_tokens_are_not_processed_again(pipe, read):
    session = ChatSession(pipe, cloud())
    session.ask("What is this?", max_new_tokens=6)
    first = dict(read)
    session.ask("Why?", max_new_tokens=6)
    answer = pipe.processor.tokenizer(session.messages[1]["content"][0]["text"])["input_ids"]
    prompt = pipe.processor.prompts([session.messages[:3]], read=False)[0].input_ids
    assert first["clouds"] == read["clouds"] == 1
    assert first["tokens"] > pipe.processor.num_query_tokens + 12
    # All tokens except those shared with the first turn, and the answer's own steps.
    assert read["tokens"] - first["tokens"] <= len(prompt) - first["tokens"] + len(answer) + 6


def test_tokens_that_differ_from_the_retokenized_text_are_processed_again(pipe):
    merging = tiny_chat_pipeline("ed")
    spelled = ForcedAnswer(merging.processor.tokenizer, "")
    spelled.rows = [merging.processor.tokenizer.convert_tokens_to_ids(["R", "e", "d", "#", "#", "#"])]
    session = ChatSession(merging, cloud())
    assert session.ask("Which color?", logits_processor=[spelled]) == "Red"
    answer = session.ask("Sure?")
    assert answer == whole(merging, session)


def test_answers_end_at_the_mark_and_are_clean(pipe):
    tokenizer = pipe.processor.tokenizer
    said = "  A chair ## of wood \n.  ###<s>[INST] And"
    for ask in (ChatSession.ask, lambda session, *args, **kwargs: "".join(session.stream(*args, **kwargs))):
        session = ChatSession(pipe, cloud(), max_new_tokens=60)
        assert ask(session, "What?", logits_processor=[ForcedAnswer(tokenizer, said)]) == "A chair ## of wood \n."


@pytest.mark.parametrize("how", ["ask", "stream"])
def test_an_error_during_an_answer_leaves_the_conversation_unchanged(pipe, how):
    """The cache is discarded: the next answers equal those to the complete conversation."""

    def fail(input_ids, scores):
        steps.append(1)
        if len(steps) == 3:
            raise RuntimeError("the device is gone")
        return scores

    session, steps = ChatSession(pipe, cloud()), []
    session.ask("What is this?")
    before = list(session.messages)
    with pytest.raises(RuntimeError, match="the device is gone"):
        if how == "ask":
            session.ask("And that?", cloud(1), logits_processor=[fail])
        else:
            list(session.stream("And that?", cloud(1), logits_processor=[fail]))
    assert session.messages == before
    for text in ("And that?", "Why?"):
        assert session.ask(text) == whole(pipe, session)


def test_a_question_with_the_mark_of_a_place_is_refused(pipe):
    session = ChatSession(pipe, cloud())
    for ask in (session.ask, lambda text: list(session.stream(text))):
        with pytest.raises(ValueError, match=f"^a text has '{PLACE_MARK}' in it; expected a part of type"):
            ask(f"What is {PLACE_MARK}?")
    assert session.messages == []
    assert session.ask("What is this?") == whole(pipe, session)


def test_errors_while_streaming_reach_the_listener(pipe):
    session = ChatSession(pipe, cloud())
    with raises(TypeError, naming="unknown arguments: beams"):
        list(session.stream("What is this?", beams=2))
    with pytest.raises(ValueError, match="has 5.. tokens; the language model takes 512"):
        list(session.stream("What is this? " * 35))
    assert session.messages == []
    assert session.ask("What is this?") == whole(pipe, session)


def test_a_conversation_may_begin_without_a_cloud(pipe):
    session = ChatSession(pipe)
    session.ask("Hello")
    session.ask("What is this?", cloud())
    assert session.messages[-1]["content"][0]["text"] == whole(pipe, session)


def test_the_oldest_questions_are_forgotten_but_no_cloud(pipe, read):
    session = ChatSession(pipe, cloud())
    for text, further in (("What is this?", None), ("And that?", cloud(1)), ("Why?", None)):
        session.ask(text, further)
    places = 2 * pipe.processor.num_query_tokens
    (prompt,) = pipe.processor.prompts([session.messages], read=False)
    whole_length = len(prompt.input_ids)
    assert session.make_room("Hm?", whole_length + 40) == 0 and len(session.messages) == 6
    assert session.make_room("Hm?", whole_length) == 1 and len(session.messages) == 4
    assert [part["type"] for part in session.messages[0]["content"]] == ["point_cloud", "point_cloud", "text"]
    assert session.ask("Hm?") == whole(pipe, session)
    with pytest.raises(ValueError, match=rf"have \d+ tokens; expected at most {places}"):
        session.make_room("So?", places)
    assert len(session.messages) == 6
    assert session.make_room("So?", places + 45) == 3 and session.messages == []
    assert session.ask("So?") == whole(pipe, session) and read["clouds"] == 2
    assert [part["type"] for part in session.messages[0]["content"]] == ["point_cloud", "point_cloud", "text"]


def test_beam_search_uses_no_cache(pipe):
    session = ChatSession(pipe, cloud(), num_beams=3)
    for text in ("What is this?", "Why?"):
        assert session.ask(text) == whole(pipe, session, num_beams=3)


def test_drafts_change_no_answer(pipe):
    session, drafting = ChatSession(pipe, cloud()), ChatSession(pipe, cloud(), prompt_lookup_num_tokens=2)
    for text in ("what is it", "what is it and what color"):
        assert drafting.ask(text) == session.ask(text)


def test_caches_that_cannot_be_cropped_are_rebuilt():
    pipe = tiny_chat_pipeline(model_type="mistral", sliding_window=8)
    session = ChatSession(pipe, cloud())
    for text in ("What is this?", "Why?"):
        assert session.ask(text) == whole(pipe, session)


def test_files_that_cannot_be_read_leave_the_conversation_alone(pipe, tmp_path):
    session = ChatSession(pipe, cloud())
    session.ask("What is this?")
    with raises(ValueError, naming="gone.ply"):
        session.ask("And this?", tmp_path / "gone.ply")
    assert len(session.messages) == 2
    with raises(ValueError, naming="gone.ply"):
        ChatSession(pipe, tmp_path / "gone.ply")


@torch.no_grad()
def test_clouds_are_cached_by_content(pipe, read):
    clouds = [cloud(0), cloud(1), cloud(0)]
    features = pipe.answerer.features(clouds)
    assert read["clouds"] == 2 and torch.equal(features[0], features[2]) and not torch.equal(features[0], features[1])
    again = pipe.answerer.features([cloud(1)])
    assert read["clouds"] == 2 and torch.equal(again[0], features[1])
    pipe.answerer.forget()
    pipe.answerer.features([cloud(1)])
    assert read["clouds"] == 3


def test_clouds_are_encoded_again_by_a_model_that_has_changed():
    own = tiny_chat_pipeline()
    session, without = ChatSession(own, cloud()), ChatSession(own)
    waiting = ChatSession(own, cloud(1))
    before = session.ask("What is this?")
    session.ask("And that?", cloud(1))
    without.ask("Hello")
    with torch.no_grad():
        for parameter in own.model.bridge.parameters():
            parameter.mul_(-2)
    assert session.ask("Why?") == whole(own, session)
    assert without.ask("Hello?") == whole(own, without)
    assert waiting.ask("What is this?") == ChatSession(own, cloud(1)).ask("What is this?")
    session.restart()
    assert session.ask("What is this?") == ChatSession(own, cloud()).ask("What is this?") != before
