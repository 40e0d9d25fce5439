import numpy as np
import pytest
from transformers import GenerationConfig, pipeline

from hf_any3d.chat import ChatSession
from tests.chat.tiny_chat_model import ForcedAnswer, cloud, tiny_chat_pipeline
from tests.errors import raises


@pytest.fixture(scope="module")
def pipe():
    return tiny_chat_pipeline()


def chat_about(text, *clouds):
    parts = [{"type": "point_cloud", "points": one} for one in clouds]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def text_of(answers):
    ((answer,),) = (answers,)
    return answer["generated_text"]


def test_chat_ends_with_the_answer(pipe):
    messages = chat_about("What is this?", cloud())
    answers = text_of(pipe(messages))
    assert answers[:-1] == messages and answers[-1]["role"] == "assistant" and answers[-1]["content"]
    assert text_of(pipe(messages, return_full_text=False)) == answers[-1]["content"]
    assert answers[-1]["content"] != text_of(pipe(chat_about("What is this?", cloud(1))))[-1]["content"]


def test_the_answer_is_what_the_model_generates(pipe):
    inputs = pipe.processor.apply_chat_template(chat_about("What is this?", cloud()), tokenize=True)
    answers = pipe.model.generate(**inputs, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
    assert pipe.processor.decode_answers(answers) == [text_of(pipe(cloud()))]


def test_many_clouds_may_share_a_question_or_have_their_own(pipe):
    clouds, texts = [cloud(seed) for seed in range(3)], ["What is this?", "Color?", "How old is it, then?"]
    assert pipe(clouds, text="Color?", batch_size=2) == [pipe(one, text="Color?") for one in clouds]
    expected = [pipe(one, text=text) for one, text in zip(clouds, texts, strict=True)]
    assert pipe(clouds, text=texts, batch_size=2) == pipe(np.stack(clouds), texts) == expected
    with pytest.raises(ValueError, match="text has 3 questions for 2 clouds"):
        pipe(clouds[:2], text=texts)


def test_answers_of_a_batch_end_separately(pipe):
    forced = ForcedAnswer(pipe.processor.tokenizer, "A chair.### and more", " It is a lamp###", "####")
    answers = pipe([cloud(0), cloud(1), cloud(2)], logits_processor=[forced], max_new_tokens=40, batch_size=3)
    assert [text_of(one) for one in answers] == ["A chair.", "It is a lamp", ""]
    assert forced.step == len(" It is a lamp###")


def test_several_answers_to_one_question(pipe):
    answers = pipe([cloud(0), cloud(1)], num_beams=3, num_return_sequences=2, batch_size=2)
    assert [len(answers) for answers in answers] == [2, 2]
    assert answers == [pipe(cloud(seed), num_beams=3, num_return_sequences=2) for seed in (0, 1)]


def test_published_prompts_are_used_by_name(pipe):
    texts = {text_of(pipe(cloud(), chat_template=name)) for name in ("training", "evaluation", "demo")}
    assert len(texts) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"stop_strings": "lam"},
        {"stop_strings": ["x", "lam"]},
        {"stop_sequence": "lam"},
        {"stop_sequence": ["lam", "x"]},
        {"generate_kwargs": {"stop_strings": ["lam"], "num_beams": 1}},
        {"generation_config": GenerationConfig(max_new_tokens=20, stop_strings=["lam"])},
        {"generate_kwargs": {"max_new_tokens": 5}},
    ],
)
def test_answers_end_as_in_the_pipelines_of_transformers(pipe, settings):
    words = ForcedAnswer(pipe.processor.tokenizer, "a lamp, old")
    length = {} if "max_new_tokens" in str(settings) else {"max_new_tokens": 20}
    assert text_of(pipe(cloud(), logits_processor=[words], **length, **settings)) == "a lam"
    words.step = 0
    session = ChatSession(pipe, cloud(), logits_processor=[words], **length)
    assert session.ask("What is this?", **settings) == "a lam"


def test_an_answer_of_a_batch_that_a_string_stops_has_nothing_behind_it(pipe):
    words = ForcedAnswer(pipe.processor.tokenizer, "a lamp, old", "chair, new")
    answers = pipe(
        [cloud(), cloud(1)], batch_size=2, logits_processor=[words], stop_strings=["lam"], max_new_tokens=10
    )
    assert [text_of(answer) for answer in answers] == ["a lam", "chair, new"]


def test_generation_arguments_are_kept_by_the_pipeline_and_given_once(pipe):
    with_limit = tiny_chat_pipeline()
    made = pipeline(
        with_limit.task, model=with_limit.model, processor=with_limit.processor, stop_sequence="lam", device="cpu"
    )
    words = ForcedAnswer(pipe.processor.tokenizer, "a lamp, old")
    assert text_of(made(cloud(), logits_processor=[words], max_new_tokens=20)) == "a lam"
    with raises(TypeError, naming="max_new_tokens"):
        pipe(cloud(), max_new_tokens=3, generate_kwargs={"max_new_tokens": 4})
    with raises(TypeError, naming="max_tokens"):
        pipe(cloud(), generate_kwargs={"max_tokens": 4})


def test_a_last_message_may_be_continued_or_answered(pipe):
    question = chat_about("What is this?", cloud())
    begun = [*question, {"role": "assistant", "content": "It is"}]
    settings = {"max_new_tokens": 4}
    continued = text_of(pipe(begun, **settings))
    assert text_of(pipe(begun, continue_final_message=True, **settings)) == continued
    assert len(continued) == 2 and continued[-1]["content"].startswith("It is")
    answered = text_of(pipe(begun, continue_final_message=False, **settings))
    assert answered[:2] == begun and answered[2]["role"] == "assistant"


def test_repetition_penalty_applies_only_to_the_answer(pipe):
    greedy = text_of(pipe(cloud()))
    punished = text_of(pipe(cloud(), repetition_penalty=1e6))
    assert punished[0] == greedy[0] and len(set(punished)) == len(punished)
    config = GenerationConfig(repetition_penalty=1e6, max_new_tokens=6)
    assert text_of(pipe(cloud(), generation_config=config)) == punished
    assert config.repetition_penalty == 1e6
    assert text_of(pipe(cloud(), generation_config=config, repetition_penalty=1.0)) == greedy
    own = tiny_chat_pipeline()
    own.model.generation_config.repetition_penalty = 1e6
    assert text_of(own(cloud())) == punished
