import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel

from hf_any3d.evaluation.caption_metrics import caption_metrics, open_sentence_encoder, open_simcse
from hf_any3d.modeling.pretrained_parts.sources import weights_checksum
from tests.errors import raises
from tests.tiny_text_towers import saved_text_tower, tiny_tokenizer, write_text_files

RESULTS = [
    {"object_id": "a", "ground_truth": "A red chair.", "model_output": "a red chair"},
    {"object_id": "b", "ground_truth": "A lamp.", "model_output": " "},
]
TEXTS, CAPTIONS = ["a red chair", "a tall lamp", "chair"], ["a red chair", "a table", "a very long wooden bench"]


@pytest.fixture(scope="module")
def simcse(tmp_path_factory):
    """A RoBERTa with its pooler, with random weights large enough for texts to differ."""
    folder = tmp_path_factory.mktemp("simcse")
    special = {"vocab_size": 30, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    config = RobertaConfig(max_position_embeddings=42, initializer_range=0.3, **special, **sizes)
    RobertaModel(config).save_pretrained(folder)
    return write_text_files(folder, is_sentence_encoder=False)


def cosine(one, other):
    return torch.nn.functional.cosine_similarity(one, other, dim=-1).numpy()


@torch.no_grad()
def test_sentence_encoders_average_their_words():
    folder = saved_text_tower("mpnet")
    cosines, made_with = open_sentence_encoder(folder)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def mean(text):
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(dim=1)[0]

    expected = [cosine(mean(text), mean(caption)) for text, caption in zip(TEXTS, CAPTIONS, strict=True)]
    np.testing.assert_allclose(cosines(TEXTS, CAPTIONS), expected, atol=1e-5)
    assert made_with == f"{folder} at {weights_checksum(folder)}"


@torch.no_grad()
def test_simcse_takes_the_pooler(simcse):
    cosines, made_with = open_simcse(str(simcse))
    model, tokenizer = RobertaModel.from_pretrained(simcse).eval(), tiny_tokenizer()

    def pooled(text):
        return model(**tokenizer(text, return_tensors="pt")).pooler_output[0]

    expected = [cosine(pooled(text), pooled(caption)) for text, caption in zip(TEXTS, CAPTIONS, strict=True)]
    found = cosines(TEXTS, CAPTIONS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[0] == pytest.approx(1) and found[1] < 0.99
    assert made_with == f"{simcse} at {weights_checksum(simcse)}"


def test_simcse_cuts_texts_to_its_places(simcse):
    cosines, _ = open_simcse(str(simcse))
    # 40 positions, two of them for special tokens; every letter is a token.
    assert cosines(["a" * 38 + "b"], ["a" * 38 + "c"])[0] == pytest.approx(1)
    assert cosines(["a" * 37 + "b"], ["a" * 37 + "c"])[0] < 1 - 1e-6


def test_unavailable_metrics_are_reported_and_the_others_computed(tmp_path, simcse):
    folder = saved_text_tower("bert")
    poolerless = tmp_path / "poolerless"
    RobertaModel(RobertaModel.from_pretrained(simcse).config, add_pooling_layer=False).save_pretrained(poolerless)
    write_text_files(poolerless, is_sentence_encoder=False)
    result = caption_metrics(RESULTS, str(tmp_path / "gone"), str(poolerless))
    assert "gone" in result["sentence-bert"]["not_available"] and result["bleu-1"]["score"] >= 0
    assert "lacks pooler.dense.bias" in result["simcse"]["not_available"]
    assert (
        "sentence-bert" not in caption_metrics(RESULTS, None, None)
        and "score" in caption_metrics(RESULTS, folder, None)["sentence-bert"]
    )


def test_ground_truths_must_be_captions():
    with raises(ValueError, naming="ground_truth"):
        caption_metrics([{"object_id": "a", "ground_truth": 3, "model_output": "x"}], None, None)


def test_no_answers_have_no_scores():
    assert {result.get("score") for result in caption_metrics([], None, None).values()} <= {None}
