"""The language model of a chat model as one of transformers: it continues embedded prompts with the same answers."""

import base64
import io
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_any3d.export import encode_prompt_embeds, export_language_model
from tests.chat.tiny_chat_model import cloud, tiny_chat_pipeline
from tests.errors import raises
from tests.modeling.minigpt3d.tiny_model import tiny_model


@pytest.mark.slow
@pytest.mark.parametrize("text", ["llama", "qwen2"])
def test_greedy_answers_from_embedded_prompts_are_those_of_the_chat_model(text, tmp_path):
    pipe = tiny_chat_pipeline(text=text)
    model, processor = pipe.model, pipe.processor
    for name, parameter in model.language_model.named_parameters():
        if ".low_rank_b" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    difference = export_language_model(model, tmp_path / "text", processor.tokenizer)
    assert difference < 1e-2 and [path.name for path in tmp_path.iterdir()] == ["text"]
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    assert type(stock).__module__.startswith("transformers.models.") and not hasattr(stock, "peft_config")
    assert not any("lora" in name for name, _ in stock.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "text").get_vocab() == processor.tokenizer.get_vocab()
    questions = [("What is this?", 0), ("And what is the color of this one?", 1)]
    conversations = [
        [
            {
                "role": "user",
                "content": [{"type": "point_cloud", "point_cloud": cloud(seed)}, {"type": "text", "text": q}],
            }
        ]
        for q, seed in questions
    ]
    prompts = processor.prompts(conversations)
    expected = pipe.answerer.generate(prompts, pipe.generate_settings({"max_new_tokens": 8, "do_sample": False}))
    rows = model.prompt_embeddings(**processor.pad(prompts))
    assert [len(row) for row in rows] == [len(prompt.input_ids) for prompt in prompts]
    for row, prompt, answer in zip(rows, prompts, expected, strict=True):
        mask = torch.ones(1, len(row), dtype=torch.long)
        tokens = stock.generate(inputs_embeds=row[None], attention_mask=mask, max_new_tokens=8, do_sample=False)
        assert (
            tokens[0].tolist() == answer[expected.shape[1] - 8 :].tolist()[: len(tokens[0])]
            and len(prompt.points) == 1
        )
    loaded = torch.load(io.BytesIO(base64.b64decode(encode_prompt_embeds(rows[0]))), weights_only=True)
    assert torch.equal(loaded, rows[0])


def test_hidden_tokens_are_left_out_of_embedded_prompts():
    model = tiny_model("llama")
    ids, mask = torch.tensor([[0, 5, 6, 7], [4, 5, 6, 7]]), torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1]])
    rows = model.prompt_embeddings(ids, attention_mask=mask)
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(rows[0], embedded[0, [1, 3]]) and torch.equal(rows[1], embedded[1])
    assert not rows[0].requires_grad
    logits = model(inputs_embeds=rows[0][None]).logits[0]
    positions = torch.tensor([[0, 0, 1, 1]])
    whole = model(input_ids=ids[:1], attention_mask=mask[:1], position_ids=positions).logits[0, [1, 3]]
    assert torch.allclose(logits, whole, atol=1e-5)


@pytest.mark.slow
def test_what_others_cannot_open_is_refused_and_nothing_is_left(tmp_path):
    with raises(ValueError, naming="NormedPhiForCausalLM"):
        export_language_model(tiny_model(), tmp_path / "text")
    model = tiny_model("llama")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with raises(FileExistsError, naming="full: exists already"):
        export_language_model(model, tmp_path / "full")
    # A copy that differs is not kept.
    forward = model.language_model.forward
    model.language_model.forward = lambda *args, **kwargs: (out := forward(*args, **kwargs), out.logits.mul_(1.1))[0]
    with raises(ValueError, naming="logits differ by"):
        export_language_model(model, tmp_path / "text")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize(("before", "token", "suppressed"), [([9, 2], 3, [2, 3, 9]), ([9, 2], 10_000, [9, 2])])
def test_the_token_of_clouds_is_suppressed_where_the_vocabulary_has_it(before, token, suppressed, tmp_path):
    model = tiny_model("llama").train()
    model.generation_config.suppress_tokens, model.config.point_token_id = before, token
    (tmp_path / "text").mkdir()  # an empty folder is as good as none
    difference = export_language_model(model, tmp_path / "text")
    assert 0 <= difference < 1e-2 and model.training and model.generation_config.suppress_tokens == before
    settings = json.loads((tmp_path / "text" / "generation_config.json").read_text())
    assert settings["suppress_tokens"] == suppressed
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    assert not (tmp_path / "text" / "tokenizer_config.json").exists()
