"""The point transformer under an adapter: where its weights come from, how it is opened, stored and trained."""

import re

import pytest
import torch

from hf_any3d.modeling.act import ActForPointCloudClassification, ActModel
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart
from hf_any3d.modeling.pretrained_parts.tensors import own_state, tensors_checksum
from tests.tiny_act import tiny_act


@pytest.fixture
def stored(tmp_path):
    """A classifier in a directory."""
    model = tiny_act(ActForPointCloudClassification)
    model.save_pretrained(tmp_path / "stored")
    return model, tmp_path / "stored"


def test_the_source_of_a_model_is_where_its_weights_are(stored, tmp_path):
    model, folder = stored
    opened = ActForPointCloudClassification.from_pretrained(folder)
    checksum = tensors_checksum(own_state(model.act))
    assert opened.find_source() == PretrainedPart(str(folder), checksum=checksum)
    assert model.find_source() == PretrainedPart(), "it was built, not opened"
    inside = ActForPointCloudClassification.from_pretrained(tmp_path, subfolder="stored")
    assert inside.find_source() == PretrainedPart(), "a folder of a repository is no source"
    told, report = ActModel.from_pretrained(folder, output_loading_info=True)
    assert told.find_source() == PretrainedPart(str(folder), checksum=checksum) and not report["missing_keys"]
    # What the config records comes first, unless it is gone, stored with the model, or has other weights.
    twin, other = tmp_path / "twin", tmp_path / "other"
    model.act.save_pretrained(twin)
    with torch.no_grad():
        model.act.norm.bias.add_(1)
    model.act.save_pretrained(other)
    for part, expected in (
        (PretrainedPart(str(twin), checksum="tensors-sha256:0"), twin),
        (PretrainedPart(str(tmp_path / "gone")), folder),
        (PretrainedPart(str(twin), stored=True), folder),
        (PretrainedPart(str(other)), folder),
    ):
        opened.config.set_part("base", part)
        assert opened.find_source() == PretrainedPart(str(expected), checksum=checksum)
    with torch.no_grad():
        opened.act.norm.bias.add_(2)
    assert opened.find_source() == PretrainedPart()


def test_a_checkpoint_with_an_adapter_is_no_source(stored):
    model, folder = stored
    (folder / "adapter_config.json").write_text("{}")
    message = f"{folder} holds an adapter (adapter_config.json) with the pretrained weights; expected weights only"
    with pytest.raises(ValueError, match=re.escape(message)):
        ActModel.open_stored_part(str(folder), model.config, {"revision": None})
