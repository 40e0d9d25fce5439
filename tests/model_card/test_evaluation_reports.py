"""Reports for tables: what a model's files say of it, and which reports are refused."""

import json

import pytest

from hf_any3d.data.fingerprints import model_fingerprint
from hf_any3d.model_card.evaluation_reports import evaluation_report, known_facts, read_report
from hf_any3d.modeling.act import ActConfig
from hf_any3d.modeling.any2point import Any2PointConfig
from tests.errors import raises
from tests.tiny_encoders import tiny_config

WHOLE = {
    **{"dataset": "mine", "encoder": "act3d", "method": "head", "seed": 0, "random": False, "selected_on_test": True},
    **{"accuracy": 1.0, "rows": 1, "settings": {}, "variant": None, "model": "sha", "versions": {"hf-any3d": "1"}},
}


def stored(folder, **changes):
    path = folder / "report.json"
    path.write_text(json.dumps(WHOLE | changes))
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("encoder", None), ("method", 1), ("seed", 1.0), ("seed", True), ("random", 0), ("selected_on_test", "no")),
        *(("accuracy", 1), ("accuracy", 94.3), ("rows", 2.0), ("settings", []), ("versions", None)),
    ],
)
def test_values_that_cannot_be_are_named(name, value, tmp_path):
    with raises(ValueError, naming=f"report.json: {name}={value!r}"):
        read_report(stored(tmp_path, **{name: value}))
    (tmp_path / "report.json").write_text(json.dumps({key: part for key, part in WHOLE.items() if key != name}))
    with raises(ValueError, naming=f"report.json: {name}="):
        read_report(tmp_path / "report.json")


def model(folder, config, report=None) -> str:
    config.save_pretrained(folder)
    if report is not None:
        report.save(folder / "metrics.json")
    return str(folder)


@pytest.mark.parametrize(("weights", "is_random"), [("pretrained", False), ("random", True), ("shuffled", None)])
def test_an_encoder_of_another_modality_is_named_with_its_weights(weights, is_random, tmp_path):
    config = Any2PointConfig(encoder_config=tiny_config("bert"), encoder_name_or_path="me/encoder")
    config.change_part("encoder", control=None if weights == "pretrained" else weights)
    place = model(tmp_path, config)
    stated = {"method": "none", "seed": 0, "selected_on_test": False}
    if is_random is None:
        with pytest.raises(ValueError, match="does not say random; expected them"):
            known_facts(place, "mine", stated)
    else:
        found = known_facts(place, "mine", stated)
        assert (found["encoder"], found["random"]) == ("me/encoder", is_random)


def test_a_report_has_figures_variant_and_checksums(tmp_path):
    place = model(tmp_path, ActConfig())
    facts = {name: WHOLE[name] for name in ("encoder", "method", "seed", "random", "selected_on_test", "settings")}
    found = evaluation_report(place, facts | {"dataset": "mine"}, {}, {"test": {"accuracy": 0.5, "loss": 1.0}}, 3)
    assert (found["accuracy"], found["loss"], found["rows"], found["variant"]) == (0.5, 1.0, 3, None)
    assert found["model"] == model_fingerprint(place) and found["frozen"] is None and "torch" in found["versions"]
    scans = facts | {"dataset": "scanobjectnn"}
    assert evaluation_report(place, scans, {}, {"test": {"accuracy": 0.5}}, 2882)["variant"] == "pb_t50_rs"
    with pytest.raises(ValueError, match="rows=2882; expected [0-9]+, the test clouds of scanobjectnn obj_only"):
        evaluation_report(place, scans, {"variant": "obj_only"}, {"test": {"accuracy": 0.5}}, 2882)
    with pytest.raises(ValueError, match="a report is about the split test; evaluated: train, validation"):
        evaluation_report(place, facts | {"dataset": "mine"}, {}, {"train": {}, "validation": {}}, 3)
    config = Any2PointConfig(encoder_config=tiny_config("bert"), encoder_checksum="tensors-sha256:ab")
    made = evaluation_report(model(tmp_path / "b", config), facts | {"dataset": "mine"}, {}, {"test": {}}, 3)
    assert made["frozen"] == "tensors-sha256:ab"
