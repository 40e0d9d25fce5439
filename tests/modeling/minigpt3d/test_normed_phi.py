import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoConfig, AutoModelForCausalLM

from hf_any3d.modeling.minigpt3d import NormedPhiConfig, NormedPhiForCausalLM
from tests.closeness import assert_nearly_equal, assert_same_gradients
from tests.modeling.minigpt3d.reference_case import ReferenceCase

LORA = {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["query_key_value", "dense"]}


@pytest.fixture(scope="module")
def case() -> ReferenceCase:
    return ReferenceCase("llm")


@pytest.fixture(scope="module")
def released(case) -> NormedPhiForCausalLM:
    """The released language model in small, LoRA included."""
    model = NormedPhiForCausalLM(NormedPhiConfig(**case.manifest["constructor"]["phi_config"]))
    inject_adapter_in_model(LoraConfig(**LORA), model)
    return case.load_into(model, "language_model.")


def tiny_model(**changes) -> NormedPhiForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    special = {"num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 1, "partial_rotary_factor": 0.5}
    return NormedPhiForCausalLM(NormedPhiConfig(**(sizes | special | changes))).eval()


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


def test_two_beams_generate_what_was_released(released, case):
    output = released.generate(
        **prompt_of(case),
        max_new_tokens=12,
        min_new_tokens=9,
        num_beams=2,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert torch.equal(output.sequences, case["beam2.tokens"].long())
    assert case.difference("beam2.sequence_scores", output.sequences_scores) < 1e-5


def test_a_cache_changes_no_logits():
    model, ids = tiny_model(), torch.arange(2, 14).view(2, 6)
    with torch.no_grad():
        full = model(input_ids=ids).logits
        start = model(input_ids=ids[:, :4], use_cache=True)
        rest = model(input_ids=ids[:, 4:], past_key_values=start.past_key_values).logits
    torch.testing.assert_close(torch.cat([start.logits, rest], dim=1), full, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_changes_no_gradient():
    plain = tiny_model(resid_pdrop=0.0).train()
    saving = copy.deepcopy(plain)
    saving.activation_checkpointing_enable()
    ids = torch.arange(2, 14).view(2, 6)
    for model in (plain, saving):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    ours, theirs = ({name: p.grad for name, p in model.named_parameters()} for model in (plain, saving))
    assert_same_gradients(theirs, ours)


def test_hidden_states_and_attentions_are_returned_on_request():
    output = tiny_model(attn_implementation="eager")(
        input_ids=torch.tensor([[2, 3, 4]]), output_hidden_states=True, output_attentions=True
    )
    assert [state.shape for state in output.hidden_states] == [(1, 3, 32)] * 3
    assert [weights.shape for weights in output.attentions] == [(1, 4, 3, 3)] * 2


def test_auto_classes_open_what_was_saved(tmp_path):
    model, ids = tiny_model(), torch.tensor([[2, 3, 4]])
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    assert type(opened) is NormedPhiForCausalLM and type(AutoConfig.from_pretrained(tmp_path)) is NormedPhiConfig
    assert torch.equal(opened(ids).logits, model(ids).logits)
    assert set(opened._no_split_modules) == {"NormedPhiDecoderLayer"}


def test_half_precision_runs():
    model, ids = tiny_model(), torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        expected = model(ids).logits
        found = model.to(torch.bfloat16)(ids).logits
    assert found.dtype == torch.bfloat16
    assert_nearly_equal(found, expected, 0.1)


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        model = NormedPhiForCausalLM(NormedPhiConfig())
        own = sum(parameter.numel() for parameter in model.parameters())
        norms = sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if "layernorm" in name and name.endswith("weight")
        )
        inject_adapter_in_model(LoraConfig(**LORA), model)
    lora = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    assert (norms, lora, own + lora) == (171_520, 31_457_280, 2_811_233_280)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_attention_heads": 4, "num_key_value_heads": 2},
            "num_key_value_heads=2; expected num_attention_heads=4",
        ),
        ({"qk_layernorm": False}, "qk_layernorm=False; expected True"),
        (
            {"hidden_size": 64, "num_attention_heads": 8},
            "partial_rotary_factor=0.4 rotates 3 of a head's 8 channels; expected an even number",
        ),
    ],
)
def test_unsupported_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        NormedPhiConfig(**changes)
