"""MiniGPT-3D's files with the published names and shapes: 2,954 million numbers, of which few are stored."""

import json
import re
from functools import cache, cached_property
from math import prod

import pytest
import torch

from hf_any3d.conversions.minigpt3d.assembly import assemble, read_stage
from hf_any3d.conversions.minigpt3d.parts import read_language_model, read_point_encoder, read_qformer
from hf_any3d.modeling.minigpt3d import stage_names
from tests.conversions.minigpt3d_originals import FOLDER, Originals

# From the widths of the case's language model to those of Phi-2.
_PHI = {80: 2560, 240: 7680, 320: 10240, 20: 80, 136: 51200}
PHI_2 = {
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "partial_rotary_factor": 0.4,
}
ENTRIES = {1: 171, 3: 571, 4: 180}
TRAINED = {1: 1_378_432, 3: 47_417_984, 4: 395_528}


@cache
def _stored(count, dtype):
    return torch.ones(count, dtype=dtype)


def _ones(shape, dtype=torch.float32):
    """Ones that share what is stored of them, as layers that are used several times do."""
    count = prod(shape)
    # In sizes of powers of two, so that files of small tensors are small.
    return _stored(1 << (count - 1).bit_length(), dtype)[:count].view(shape)


class Published(Originals):
    """All files, with 12 layers in the Q-Former and 32 in the language model; all numbers are ones."""

    def __init__(self):
        super().__init__(small=False)

    @cached_property
    def state(self):
        state = {}
        for name, (shape, dtype) in self.manifest["state"].items():
            if name.startswith("llama_model."):
                shape = [_PHI.get(size, size) for size in shape]
            elif name.startswith("llama_proj2."):
                shape = [_PHI.get(size, size) for size in shape]
            tensor = _ones(shape, getattr(torch, dtype))
            state |= dict.fromkeys(self.in_all_layers(name), tensor)
        return state

    @cached_property
    def blip2_queries(self):
        return _ones((1, 32, 768))

    def in_all_layers(self, name):
        """The published layers that a layer of the case represents."""
        if match := re.match(r"(Qformer\.bert\.encoder\.layer\.)([01])(\..*)", name):
            # In the case, layer 0 attends to the cloud and layer 1 does not.
            return [f"{match[1]}{number}{match[3]}" for number in range(int(match[2]), 12, 2)]
        if match := re.match(r"(llama_model\..*layers\.)([012])(\..*)", name):
            return [f"{match[1]}{number}{match[3]}" for number in (range(32) if match[2] == "0" else ())]
        return [name]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The directory of the files: "point_model", "blip2", "Phi_2" and numbers of stages."""
    directory, originals = tmp_path_factory.mktemp("published"), Published()
    torch.save(originals.point_encoder(), directory / "point_model.pth")
    torch.save(originals.blip2(), directory / "blip2.pth")
    phi = directory / "Phi_2"
    phi.mkdir()
    torch.save(originals.phi(), phi / "pytorch_model.bin")
    (phi / "config.json").write_text(json.dumps({"model_type": "phi", **PHI_2}))
    for number in (0, 1, 3, 4):
        torch.save(originals.stage(number), directory / f"{number}.pth")
    yield directory
    _stored.cache_clear()


@pytest.fixture(scope="module")
def parts(files):
    return (
        read_point_encoder(files / "point_model.pth"),
        read_qformer(files / "blip2.pth"),
        read_language_model(files / "Phi_2"),
    )


@pytest.mark.slow
def test_parts_have_the_published_sizes(parts):
    encoder, qformer, phi = parts
    counts = [sum(tensor.numel() for tensor in part.state.values() if tensor.is_floating_point()) for part in parts]
    running = 2 * (128 + 512)
    # Phi-2 has 2,779,683,840 parameters of its own; the rest are the added norms.
    assert counts == [21_859_200 + running, 105_137_664 + 24_576, 2_779_683_840 + 32 * (4 * 80 + 2560)]
    assert (encoder.config.num_hidden_layers, encoder.config.num_groups, encoder.config.patch_pooled_width) == (
        12,
        512,
        256,
    )
    assert (qformer.config.qformer_config.num_hidden_layers, qformer.config.num_query_tokens) == (12, 32)
    assert (phi.config.num_hidden_layers, phi.config.bos_token_id) == (32, 50256)


@pytest.mark.parametrize("stage", ENTRIES)
def test_files_of_stages_have_the_published_entries(files, stage):
    file = read_stage(files / f"{stage}.pth")
    assert (file.stage, file.entries) == (stage, ENTRIES[stage])
    assert len(file.encoder) == 160
    assert sum(tensor.numel() for tensor in file.trained.values()) == TRAINED[stage]


@pytest.mark.slow
def test_the_first_stage_starts_from_exactly_the_image_priors(files, parts):
    manifest = json.loads((FOLDER / "minigpt3d_start.json").read_text())
    stored = torch.load(files / "0.pth", mmap=True)["model"]
    shapes = {name: list(tensor.shape) for name, tensor in stored.items()}
    assert shapes == manifest["tinygptv_stage3"]["tensors"] and len(shapes) == 261
    start = read_stage(files / "0.pth")
    whole = assemble(*parts, [start])
    assert whole.model.config.image_priors
    # Each of them, by identity: nothing else takes its place.
    named = {name.replace(".linear.", "."): tensor for name, tensor in whole.state.items()}
    assert len(start.trained) == 261 and all(named[name] is tensor for name, tensor in start.trained.items())
    qformer = manifest["from_blip2"]["tensors"]
    assert len(parts[1].state) == len(qformer) == 255
    assert sorted(list(t.shape) for t in parts[1].state.values()) == sorted(map(list, qformer.values()))
    assert parts[1].left_out == {"Qformer": 3, "ln_vision": 2, "t5_proj": 2}


@pytest.mark.slow
@pytest.mark.parametrize("stages", [(0,), (0, 1), (3,), (3, 4)])
def test_every_tensor_of_a_model_is_converted(files, parts, stages):
    whole = assemble(*parts, [read_stage(files / f"{stage}.pth") for stage in stages])
    assert whole.model.num_parameters() == 2_954_367_240
    assert whole.state.keys() == whole.model.base_model.state_dict().keys()
    assert bool(whole.fresh) == (stages[-1] != 4)
    counts = {
        stage: sum(whole.model.get_parameter(name).numel() for name in stage_names(whole.model, stage))
        for stage in (1, 2, 3, 4)
    }
    assert counts == {1: TRAINED[1], 2: TRAINED[3], 3: TRAINED[3], 4: TRAINED[4]}
    config = whole.model.config
    assert config.text_lora["r"] == 64 and config.qformer_lora["r"] == 8 and config.qformer_lora["lora_alpha"] == 16
    assert (config.projector_width, config.router_width, list(config.point_mlp_widths)) == (4096, 256, [768])
