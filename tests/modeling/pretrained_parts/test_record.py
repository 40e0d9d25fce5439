"""Records of pretrained parts in a config, and arguments with which parts are loaded."""

import pytest
import torch

from hf_any3d import Any2PointConfig
from hf_any3d.modeling.pretrained_parts.loading import encoder_loading, single_device
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart, absolute_name


def test_a_config_changes_one_record_and_keeps_none_that_is_empty():
    config = Any2PointConfig(parts={"encoder": {"name_or_path": "a/b", "revision": "main"}})
    config.change_part("encoder", checksum="sha256:1")
    assert config.parts == {"encoder": {"name_or_path": "a/b", "revision": "main", "checksum": "sha256:1"}}
    config.set_part("encoder", PretrainedPart())
    assert config.parts is None and config.part("encoder") == PretrainedPart()
    config.encoder_name_or_path = "c/d"
    assert config.encoder_name_or_path == "c/d" and config.encoder_trained_from is None
    config.encoder_trained_from = "c/d"  # changed, and stored with the model
    assert config.encoder_name_or_path is None and config.encoder_trained_from == "c/d"
    config.encoder_name_or_path = None
    assert config.encoder_trained_from == "c/d"
    config.encoder_name_or_path = "e/f"
    assert config.part("encoder") == PretrainedPart("e/f")
    config.encoder_name_or_path = None
    assert config.parts is None


def test_directories_are_recorded_absolutely_and_names_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute_name("encoder") == str(tmp_path / "encoder")
    assert absolute_name("owner/encoder") == "owner/encoder"


def test_an_encoder_is_loaded_on_one_device():
    assert encoder_loading(None, None) == {}
    assert encoder_loading("cpu", "4bit") == {"quantization_config": "4bit", "device_map": {"": "cpu"}}
    assert single_device({"a": "cpu", "b": "cpu"}) == "cpu"
    assert single_device("auto") == (torch.accelerator.current_accelerator() or torch.device("cpu"))
    for wrong in ({"a": "cpu", "b": 0}, {}):
        with pytest.raises(ValueError, match="expected one device for the whole model"):
            single_device(wrong)
