"""Records of pretrained parts in a config, and arguments with which parts are loaded."""

from hf_any3d.modeling.pretrained_parts.record import absolute_name


def test_directories_are_recorded_absolutely_and_names_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute_name("encoder") == str(tmp_path / "encoder")
    assert absolute_name("owner/encoder") == "owner/encoder"
