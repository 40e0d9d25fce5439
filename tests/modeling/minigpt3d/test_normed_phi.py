import pytest
import torch

from hf_any3d.modeling.minigpt3d import NormedPhiConfig, NormedPhiForCausalLM
from hf_any3d.modeling.minigpt3d.lora import add_low_rank
from tests.modeling.minigpt3d.reference_case import ReferenceCase

LORA = {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["query_key_value", "dense"]}


@pytest.fixture(scope="module")
def case() -> ReferenceCase:
    return ReferenceCase("llm")


@pytest.fixture(scope="module")
def released(case) -> NormedPhiForCausalLM:
    """The released language model in small, LoRA included."""
    model = NormedPhiForCausalLM(NormedPhiConfig(**case.manifest["constructor"]["phi_config"]))
    add_low_rank(model, LORA)
    return case.load_into(model, "language_model.")


@torch.no_grad()
def outputs_of(model, case, sample):
    mask = case[f"{sample}.attention_mask"].long()
    labels = case[f"{sample}.labels"].long()
    return model(inputs_embeds=case[f"{sample}.inputs_embeds"], attention_mask=mask, labels=labels), mask == 1


def prompt_of(case):
    mask = case["generate.attention_mask"].long()
    return {"inputs_embeds": case["generate.inputs_embeds"], "attention_mask": mask}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("sample", ["single", "conv"])
def test_logits_and_loss_are_the_released_ones(released, case, sample, attention):
    released.set_attn_implementation(attention)
    outputs, seen = outputs_of(released, case, sample)
    assert case.difference(f"{sample}.logits", outputs.logits, where=seen) < 2e-5
    assert case.difference(f"{sample}.loss", outputs.loss[None]) < 1e-5


def test_every_step_of_a_layer_is_the_released_one(released, case):
    layers = released.model.layers
    steps = {
        "layer0_input_layernorm": layers[0].input_layernorm,
        "layer0_query_key_value": layers[0].self_attn.query_key_value,
        "layer0_post_layernorm": layers[0].post_layernorm,
        "layer0_attention": layers[0].self_attn,
        "layer0_mlp": layers[0].mlp,
        "final_layernorm": released.model.final_layernorm,
        **{f"layer{index}": layer for index, layer in enumerate(layers)},
    }
    found = {}

    def keep(key):
        def hook(_, __, output):
            found[key] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [module.register_forward_hook(keep(key)) for key, module in steps.items()]
    hooks.append(
        layers[0].self_attn.q_layernorm.register_forward_hook(
            lambda _, __, output: found.update(layer0_q_layernorm=output.transpose(1, 2))
        )
    )
    outputs_of(released, case, "single")
    for hook in hooks:
        hook.remove()
    seen = case["single.attention_mask"] == 1
    for key, ours in found.items():
        kept = seen[:, :: case.manifest["subsampling"].get(f"single.{key}", [1, 1])[1]]
        assert case.difference(f"single.{key}", ours, where=kept) < 1e-5, key


def test_greedy_generation_from_embeddings_is_the_released_one(released, case):
    output = released.generate(
        **prompt_of(case), max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    assert torch.equal(output.sequences, case["generate.tokens"].long())
    assert case.difference("generate.step_logits", torch.stack(output.logits, dim=1)) < 2e-5
