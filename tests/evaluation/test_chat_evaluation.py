import pytest

from hf_any3d.data.fingerprints import model_fingerprint
from hf_any3d.evaluation.chat_evaluation import open_model
from tests.chat.tiny_chat_model import cloud, tiny_chat_pipeline


@pytest.mark.slow
def test_models_answer_the_published_prompt_and_record_their_revision(tmp_path):
    pipe = tiny_chat_pipeline()
    pipe.save_pretrained(tmp_path)
    generate, about = open_model(str(tmp_path), device="cpu")
    assert about == {"model": str(tmp_path), "revision": model_fingerprint(tmp_path)}
    clouds = [cloud(0), cloud(1), cloud(2)]
    result = generate(clouds, "What is this?", {"max_new_tokens": 8, "do_sample": False})
    asked = {"text": "What is this?", "max_new_tokens": 8, "do_sample": False}
    published = [pipe(one, chat_template="evaluation", **asked)[0]["generated_text"] for one in clouds]
    assert result == published != [pipe(one, **asked)[0]["generated_text"] for one in clouds]
