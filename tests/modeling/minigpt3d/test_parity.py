"""The full model against a stored run of the released one."""

import pytest
import torch

from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration
from tests.modeling.minigpt3d.conversations import prompt_batch, training_batch
from tests.modeling.minigpt3d.reference_case import ReferenceCase
from tests.modeling.minigpt3d.released_model import released_model
from tests.reference.fill import points


@pytest.fixture(scope="module")
def case() -> ReferenceCase:
    return ReferenceCase("full")


@pytest.fixture(scope="module")
def released(case) -> MiniGPT3DForConditionalGeneration:
    return released_model(case)


@pytest.fixture(scope="module")
def point_tokens(released) -> torch.Tensor:
    return released.encode(torch.from_numpy(points("minigpt3d_full", 2, 8192, 6)))


@torch.no_grad()
def features_of(model, point_tokens, *, experts):
    model.config.use_query_experts = experts
    return model.bridge(point_tokens)


@pytest.mark.slow
def test_point_encoder_gives_the_released_tokens(point_tokens, case):
    assert case.difference("encoder_tokens", point_tokens) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("experts", "stage"), [(False, "stage3"), (True, "mqe")])
@torch.no_grad()
def test_loss_and_logits_are_the_released_ones(released, case, point_tokens, experts, stage):
    bridged = features_of(released, point_tokens, experts=experts)
    assert case.difference(f"{stage}.llm_tokens", bridged.tokens) < 1e-4
    if experts:
        assert case.difference("mqe.router_logits", bridged.routing.logits) < 1e-5
    batch = training_batch(case.manifest)
    seen = batch["attention_mask"] == 1
    assert torch.equal(batch["attention_mask"], case[f"{stage}.attention_mask"].long())
    assert torch.equal(batch["labels"], case[f"{stage}.labels"].long())
    outputs = released(**batch, point_features=bridged.tokens)
    assert case.difference(f"{stage}.logits", outputs.logits, where=seen) < 1e-4
    assert case.difference(f"{stage}.loss", outputs.loss[None]) < 1e-5


@pytest.mark.slow
@torch.no_grad()
def test_greedy_answers_are_the_released_ones(released, case, point_tokens):
    features = features_of(released, point_tokens, experts=True).tokens
    prompt = "<s>[INST] <PC><PointCloudHere></PC> <s>[INST] {} [/INST]"
    batch = prompt_batch([prompt.format(question) for question in case.manifest["input"]["generate"]["questions"]])
    assert torch.equal(batch["attention_mask"], case["generate.attention_mask"].long())
    output = released.generate(
        **batch,
        point_features=features,
        max_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    prompted = batch["input_ids"].shape[1]
    assert torch.equal(output.sequences[:, prompted:], case["generate.tokens"].long())
    assert case.difference("generate.step_logits", torch.stack(output.logits, dim=1)) < 1e-4
