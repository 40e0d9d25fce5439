"""Files of the authors in rarer forms: in several parts, with fewer channels, without what others have."""

import json

import torch
from safetensors.torch import load_file, save_file

from hf_any3d.conversions import convert_spatiallm
from tests.conversions.spatiallm_originals import Released


def test_weights_in_several_files_are_all_named(tmp_path):
    released = Released()
    released.write_settings(tmp_path / "released")
    names = sorted(released.state)
    places = {name: f"model-{1 + number % 2}.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        part = {name: released.state[name].contiguous() for name in names if places[name] == file}
        save_file(part, tmp_path / "released" / file)
    index = tmp_path / "released" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    facts = convert_spatiallm(tmp_path / "released", tmp_path / "ours", dtype="float16")
    assert facts["bytes"] == sum(file.stat().st_size for file in (tmp_path / "ours").iterdir())
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "- Model, model-1.safetensors: `model-1.safetensors`" in card and "- Model, model-2.safetensors: " in card
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    name = "spatiallm.language_model.model.embed_tokens.weight"
    assert torch.equal(stored[name], released.state["model.embed_tokens.weight"].half())
    assert "spatiallm.language_model.lm_head.weight" not in stored
