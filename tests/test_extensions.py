"""Packages beside this one: what is said where one that is known is not installed."""

import numpy as np
import pytest
from transformers import AutoConfig

from hf_any3d import AutoModelForPointCloudSegmentation, extensions, registry
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.evaluation import classification
from hf_any3d.training import request_builder
from hf_any3d.training.sources import find_source
from tests.cli.conftest import run
from tests.errors import raises

HOW = "pip install 'hf-any3d[survey]'"


@pytest.fixture(autouse=True)
def nothing_beside(monkeypatch):
    for module in (extensions, request_builder):
        monkeypatch.setattr(module, "EXTENSIONS", {})


@pytest.mark.parametrize("line", ["inventory a.las", "data suggest a.las", "evaluate numbers a.las b.las"])
def test_a_command_names_its_package(line):
    done = run(*line.split())
    assert done.code == 1 and HOW in done.err and done.err.count("\n") == 1


def test_advice_to_run_a_command_names_its_package():
    done = run("segment", "a.las")
    advice = done.err.splitlines()[0]
    assert done.code == 1 and "hf-any3d inventory a.las --output FILE" in advice and HOW in advice


def test_an_option_names_its_package(tmp_path):
    done = run("evaluate", "a.las", "b.las", "--numbers", "treeID")
    assert done.code == 1 and HOW in done.err and "--numbers" in done.err


def test_a_stored_model_names_its_package(monkeypatch):
    monkeypatch.setattr(registry, "MODEL_TYPES", {})
    with raises(ValueError, naming=HOW):
        registry.check_model_type("outputs/tiles", "local_features")
    with raises(ValueError, naming="not of this package"):
        registry.check_model_type("outputs/other", "other")


def test_opening_a_model_in_python_names_its_package(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "local_features"}')
    for open_config in (AutoConfig.from_pretrained, AutoModelForPointCloudSegmentation.from_pretrained):
        with raises(OSError, naming=HOW):
            open_config(tmp_path)


def test_labeled_points_name_the_package_that_learns_them_and_the_way_that_needs_none(tmp_path):
    for name in ("a", "b"):
        points = np.random.default_rng(0).random((20, 3))
        write_point_cloud(tmp_path / f"{name}.ply", PointCloudData(points, labels=np.arange(20) % 2))
    source = find_source(str(tmp_path))
    for way in (None, "features"):
        with raises(ValueError, naming=f"{HOW}; to train a network, use --way trained"):
            request_builder.build_request(source, {}, [], way, dict)
    request, _ = request_builder.build_request(source, {}, [], request_builder.Way.TRAINED, dict)
    assert type(request).__name__ == "Segmentation"


def test_a_module_without_a_package_is_refused():
    for wrong in ({"formats": {"corners": "corners"}}, {"datasets": {"corners": ("corners", None)}}):
        with raises(ValueError, naming="such as mine.corners"):
            extensions.Extension(**wrong)


def test_names_that_are_there_already_are_refused(monkeypatch):
    with raises(ValueError, naming="the package mine brings the file format 'las'"):
        registry._refuse_taken("mine", "file format", {"las": "mine.las"}, registry.FORMATS)
    mine = extensions.Extension(metrics=(f"{__name__}:wrongly_named",))
    monkeypatch.setattr(classification, "EXTENSIONS", {"mine": mine})
    with raises(ValueError, naming="'accuracy', which is there already"):
        classification.metrics_of_extensions(np.zeros((2, 2)), np.zeros(2, int))


def wrongly_named(logits, labels):
    return {"accuracy": 1.0}
