"""Local judges: a tiny saved language model with a byte tokenizer."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_any3d.evaluation.llm_judge import LanguageModelJudge
from tests.chat.tiny_tokenizers import byte_tokenizer

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}<judge>"


def saved_judge(folder, template=None, places=2048):
    """Random weights, large enough for replies to depend on the prompt."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=places,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=1.0,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_judge(tmp_path_factory.mktemp("judge"))


def test_replies_continue_the_prompt(folder):
    judge = LanguageModelJudge(folder, settings={"max_new_tokens": 9})
    ids = judge.tokenizer("Same?", return_tensors="pt")["input_ids"]
    result = judge.model.generate(ids, max_new_tokens=9, do_sample=False)[0, ids.shape[1] :]
    assert judge("Same?") == judge.tokenizer.decode(result, skip_special_tokens=True) != judge("Other?")
    assert judge("Same?") == judge("Same?")


def test_chat_models_are_prompted_through_their_template(tmp_path, folder):
    chat = LanguageModelJudge(saved_judge(tmp_path, TEMPLATE), settings={"max_new_tokens": 9})
    plain = LanguageModelJudge(folder, settings={"max_new_tokens": 9})
    assert chat("Same?") == plain("<user>Same?<judge>") != plain("Same?")


def test_sampled_replies_repeat_with_their_seed(folder):
    settings = {"max_new_tokens": 9, "do_sample": True, "temperature": 2.0}
    replies = [LanguageModelJudge(folder, settings=settings, seed=seed)("Same?") for seed in (0, 0, 1)]
    assert replies[0] == replies[1] != replies[2]


def test_prompts_that_leave_no_context_for_a_reply_are_refused(tmp_path):
    judge = LanguageModelJudge(saved_judge(tmp_path, places=64), settings={"max_new_tokens": 60})
    assert isinstance(judge("1234"), str)
    with pytest.raises(ValueError, match="5 tokens of prompt and up to 60 of reply; expected at most 64 together"):
        judge("12345")
