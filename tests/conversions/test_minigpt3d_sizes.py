"""Sizes and settings of MiniGPT-3D that its files imply, and the order of its stages."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from hf_any3d import ActConfig, ActModel
from hf_any3d.conversions.act.adapter_names import prompt_module
from hf_any3d.conversions.minigpt3d.names import convert_phi_state_dict
from hf_any3d.conversions.minigpt3d.parts import (
    bridge_sizes,
    lora_rank,
    normed_phi_config,
    point_encoder_sizes,
    qformer_sizes,
    read_converted,
    read_language_model,
    read_point_encoder,
    read_qformer,
)
from hf_any3d.conversions.minigpt3d.stages import StageFile, check_order, initialize_untrained, read_stage
from tests.conversions.minigpt3d_originals import Originals


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of the authors, small."""
    folder = tmp_path_factory.mktemp("minigpt3d") / "in"
    arguments = Originals().write(folder, 3, 4)
    for number in (0, 1):
        torch.save(Originals().stage(number), folder / f"stage_{number}.pth")
    return {**arguments, "start": folder / "stage_0.pth", "first": folder / "stage_1.pth"}


def test_a_point_encoder_is_read_with_its_sizes(files):
    sizes = {"in_channels": 5, "patch_widths": [8, 16, 24], "patch_pooled_width": 12, "hidden_size": 128}
    sizes |= {"num_hidden_layers": 2, "mlp_ratio": 1.5}
    with torch.device("meta"):
        state = ActModel(ActConfig(**sizes, num_attention_heads=2)).state_dict()
    more = {"num_attention_heads": 2, "qkv_bias": False, "use_class_token": True, "side_network": False}
    assert point_encoder_sizes(state) == sizes | more
    part = read_point_encoder(files["point_encoder"])
    assert part.source == files["point_encoder"] and part.files == [files["point_encoder"]]
    assert (part.architecture, part.is_converted) == ("ActModel", False)
    config = part.config
    assert (config.num_groups, config.group_size, config.num_attention_heads) == (512, 32, 1)
    other = read_point_encoder(str(files["point_encoder"]), num_groups=7, group_size=9).config
    assert (other.num_groups, other.group_size) == (7, 9)
    assert read_converted("point_encoder", files["point_encoder"]) is None


@pytest.mark.parametrize(("depth", "every"), [(4, 2), (3, 3), (2, 2), (5, 1)])
def test_a_q_former_is_read_with_its_sizes(depth, every):
    sizes = {
        "hidden_size": 128,
        "num_hidden_layers": depth,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "encoder_hidden_size": 24,
        "cross_attention_frequency": every,
    }
    with torch.device("meta"):
        state = Blip2QFormerModel(Blip2QFormerConfig(**sizes)).state_dict()
    assert qformer_sizes({f"qformer.{name}": tensor for name, tensor in state.items()}) == sizes


def test_a_q_former_is_read_with_its_queries(files):
    part = read_qformer(files["qformer"])
    assert part.files == [files["qformer"]] and part.architecture == "QueriesAndQFormer"
    assert part.config.num_query_tokens == 6 == part.state["query_tokens"].shape[1]
    inner = part.config.qformer_config
    assert part.config.vision_config.hidden_size == inner.encoder_hidden_size == 40 and inner.hidden_size == 64


def test_a_language_model_is_read_with_its_files(files):
    part = read_language_model(str(files["language_model"]))
    assert part.source == files["language_model"] and part.architecture == "NormedPhiForCausalLM"
    assert part.files == [files["language_model"] / "model.safetensors"]
    assert part.config.hidden_size == Originals().phi_config()["hidden_size"]


def test_sizes_of_the_bridge_are_those_of_the_parts_that_are_there():
    state = {"bridge.projector.fc1.weight": torch.zeros(7, 3)}
    assert bridge_sizes(state) == {"projector_width": 7}
    for number, width in enumerate((4, 5, 6)):
        state[f"bridge.point_mlp.layers.{number}.weight"] = torch.zeros(width, 2)
    state |= {"bridge.experts.router.0.weight": torch.zeros(8, 2), "bridge.experts.router.2.weight": torch.zeros(9, 8)}
    more = {"point_mlp_widths": [4, 5], "router_width": 8, "num_query_experts": 9}
    assert bridge_sizes(state) == {"projector_width": 7, **more}
    assert lora_rank({"a.x.lora_A.w": torch.zeros(3, 5), "b.x.lora_A.w": torch.zeros(4, 5)}, "b.") == 4
    assert lora_rank({"a.x.lora_A.w": torch.zeros(3, 5), "b.x.lora_B.w": torch.zeros(4, 5)}, "b.") is None


PHI = {
    "vocab_size": 20,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "layer_norm_eps": 0.25,
    "post_norm_eps": 0.125,
    "initializer_range": 0.5,
    "resid_pdrop": 0.0625,
    "embd_pdrop": 0.375,
    "attention_dropout": 0.75,
    "bos_token_id": 4,
    "eos_token_id": 5,
    "pad_token_id": 6,
}
FIRST = {
    "model_type": "phi-msft",
    "vocab_size": 20,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 3,
    "n_head_kv": None,
    "n_inner": None,
    "n_positions": 77,
    "rotary_dim": 8,
    "activation_function": "gelu",
    "layer_norm_epsilon": 0.25,
    "attn_pdrop": 0.75,
}


def test_settings_of_phi_are_read_in_both_forms(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "phi", "partial_rotary_factor": 0.25, "other": 3, **PHI}))
    config = normed_phi_config(file)
    assert {name: getattr(config, name) for name in PHI} == PHI and config.qk_layernorm
    assert config.rope_parameters["partial_rotary_factor"] == 0.25
    file.write_text(json.dumps(FIRST))
    config = normed_phi_config(file)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "hidden_act")
    assert {name: getattr(config, name) for name in names} == {name: PHI[name] for name in names}
    assert (config.intermediate_size, config.num_key_value_heads) == (192, 3)
    assert (config.layer_norm_eps, config.attention_dropout) == (0.25, 0.75)
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    file.write_text(json.dumps(FIRST | {"n_inner": 30, "rotary_dim": None}))
    config = normed_phi_config(file)
    assert config.intermediate_size == 30 and config.rope_parameters["partial_rotary_factor"] == 0.4
    for changes, message in (
        ({"n_head": None}, "lacks 'num_attention_heads'"),
        ({"n_head": 0}, "config.json: "),
        ({"model_type": "gpt2"}, "model_type='gpt2'; expected one of 'phi', 'phi-msft', 'normed_phi'"),
    ):
        file.write_text(json.dumps(FIRST | changes))
        with pytest.raises(ValueError, match=re.escape(message)):
            normed_phi_config(file)


def test_rows_of_queries_keys_and_values_are_put_head_by_head():
    rows = torch.arange(12.0)
    stacked = {"model.layers.0.self_attn.query_key_value.bias": rows}
    assert torch.equal(convert_phi_state_dict(stacked, 2)[next(iter(stacked))], rows)  # as they are
    # The first layout has all queries first: two heads of two channels each.
    found = convert_phi_state_dict({"transformer.h.0.mixer.Wqkv.bias": rows}, 2)
    assert found["model.layers.0.self_attn.query_key_value.bias"].tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
    parts = {
        f"model.layers.0.self_attn.{part}_proj.bias": rows[at : at + 4] for part, at in (("v", 8), ("q", 0), ("k", 4))
    }
    found = convert_phi_state_dict(parts, 2)
    assert found["model.layers.0.self_attn.query_key_value.bias"].tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
    with pytest.raises(
        ValueError, match=re.escape("stacked.bias has shape (12,); expected rows in a multiple of 3 times 5")
    ):
        convert_phi_state_dict({"transformer.h.0.mixer.Wqkv.bias": rows}, 5)


def test_stages_are_told_by_what_they_hold(files):
    expected = {"start": 0, "first": 1, "checkpoint": 3, "second_checkpoint": 4}
    for role, stage in expected.items():
        file = read_stage(files[role])
        assert (file.stage, file.path) == (stage, files[role])
        stored = torch.load(files[role], weights_only=True)["model"]
        assert file.entries == len(stored)
        assert bool(file.encoder) == bool(stage) and not any(
            name.startswith("point_encoder.") for name in file.trained
        )
        assert "norm.weight" in file.encoder or not stage


def test_the_order_of_stages_is_that_of_training():
    def file(stage: int) -> StageFile:
        return StageFile(Path(f"{stage}.pth"), stage, 1, {}, {})

    for stages in ([0], [0, 1], [3], [3, 3], [0, 3], [3, 4], [0, 3, 4]):
        check_order([file(stage) for stage in stages])
    for stages, message in (
        (
            [1],
            "1.pth: holds stage I, which lacks all of what training starts from; give that file too, as checkpo",
        ),
        (
            [4],
            "4.pth: holds stage IV, which lacks all of stage II or III; give that file too, as checkpo",
        ),
        ([0, 4], "4.pth: holds stage IV, which lacks all of stage II or III"),
        ([4, 3], "4.pth: holds stage IV, which lacks all of stage II or III"),
        (
            [3, 0],
            "0.pth: holds what training starts from, which comes before stage II or III; give the file",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            check_order([file(stage) for stage in stages])


def test_parts_that_no_file_has_are_initialized_as_training_does():
    def named(*names: str) -> dict[str, torch.Tensor]:
        return {name: torch.empty(60, 40, device="meta") for name in names}

    queries = torch.randn(60, 40, generator=torch.Generator().manual_seed(1))
    mlp, bias = "bridge.point_mlp.layers.0.weight", "bridge.point_mlp.layers.0.bias"
    lora_a, lora_b = (f"bridge.qformer.encoder.lora_{kind}.default.weight" for kind in "AB")
    router, query, other = "bridge.experts.router.0.weight", "bridge.experts.queries.3", "language_model.weight"
    missing = named(mlp, bias, lora_a, lora_b, router, query, other)
    expected = {
        0: {mlp, bias, lora_a, lora_b, router, query},
        1: {lora_a, lora_b, router, query},
        3: {router, query},
        4: set(),
    }
    for stage, names in expected.items():
        assert initialize_untrained(missing, stage, queries, 0.5).keys() == names
    made, again = (initialize_untrained(missing, 0, queries, 0.5) for _ in range(2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in made.items())
    assert made[query] is queries and not made[bias].any() and not made[lora_b].any()
    assert 0.45 < made[mlp].std() < 0.55 and 0.45 < made[router].std() < 0.55
    bound = 40**-0.5  # that of a new linear layer
    assert 0.9 * bound < made[lora_a].abs().max() <= bound


def test_modules_of_idpt_are_told_by_their_parts():
    kinds = {
        "dgcnn": ("conv1", "conv2", "conv3", "conv5"),
        "dgcnn_light2": ("conv1", "conv2", "conv5"),
        "dgcnn_light": ("conv1", "conv5"),
        "mlp": ("conv5",),
        "transformer": ("blocks",),
    }
    for kind, parts in kinds.items():
        names = [f"blocks.cls.{part}.0.weight" for part in parts]
        assert prompt_module([*names, "blocks.cls.bn1.weight", "prompt_pos"]) == kind
    for parts, told in ((("conv1", "conv2"), "conv1, conv2"), ((), "none")):
        with pytest.raises(
            ValueError, match=f"IDPT's module has the parts {told}; expected dgcnn of conv1, conv2, conv3"
        ):
            prompt_module([f"blocks.cls.{part}.0.weight" for part in parts])
