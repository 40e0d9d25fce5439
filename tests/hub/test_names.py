"""Names that are meant as paths never reach the hub, and what is not in the cache is reported without it."""

import pytest
from peft import get_peft_model

from hf_any3d import (
    Any2PointConfig,
    Any2PointForPointCloudClassification,
    AutoModelForPointCloudClassification,
    GuidedAdapterConfig,
    MiniGPT3DProcessor,
    PointCloudProcessor,
    PointNetForPointCloudClassification,
    load_point_dataset,
)
from hf_any3d.data.files import supported_file_types
from hf_any3d.hub.names import SILENT_HUB, check_name, check_path, is_path_like, similar_path
from hf_any3d.integration.opening import open_pipeline
from tests.errors import raises
from tests.tiny_encoders import tiny_model

OPEN = {
    "class": Any2PointForPointCloudClassification.from_pretrained,
    "class without pretrained parts": PointNetForPointCloudClassification.from_pretrained,
    "auto class": AutoModelForPointCloudClassification.from_pretrained,
    "config": Any2PointConfig.from_pretrained,
    "processor": PointCloudProcessor.from_pretrained,
    "chat processor": MiniGPT3DProcessor.from_pretrained,
    "encoder": Any2PointForPointCloudClassification.from_encoder_pretrained,
    "pipeline of the commands": lambda name: open_pipeline("point-cloud-classification", name, "cpu"),
    "adapter": lambda name: get_peft_model(tiny_model(), GuidedAdapterConfig()).load_adapter(name, "other"),
    "dataset": load_point_dataset,
}
# The others have messages of their own.
MODELS = [name for name in OPEN if name not in ("dataset", "encoder")]
PATHS = ["outputs/typo", "./x", "../x", "~/x", "/nowhere/x", "C:\\x", "outputs\\typo", "me/model.safetensors", "a/b/c"]


@pytest.mark.parametrize("entry_point", OPEN)
@pytest.mark.parametrize("path", ["outputs/typo", "./x/y", "C:\\x/y", "me/model.safetensors", "scans/second"])
def test_a_path_never_reaches_the_hub(hub, tmp_path, monkeypatch, entry_point, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans" / "seconds").mkdir(parents=True)
    before = len(hub.requests)
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        OPEN[entry_point](path)
    assert path in str(caught.value).replace("\\\\", "\\") and "\n" not in str(caught.value)
    assert len(hub.requests) == before


def test_the_error_names_a_similar_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("outputs/chairs")
    with pytest.raises(FileNotFoundError, match="^outputs/chiars: no such directory; did you mean outputs/chairs\\?$"):
        AutoModelForPointCloudClassification.from_pretrained("outputs/chiars")
    with pytest.raises(FileNotFoundError, match="did you mean outputs/chairs"):
        check_name("output/chairs")
    assert similar_path("elsewhere/chairs") == ""


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_told_from_names_on_the_hub(path):
    assert is_path_like(path)


@pytest.mark.parametrize("file_type", supported_file_types())
def test_every_type_of_cloud_is_a_file_and_no_name(file_type, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_path_like(f"scans/chair.{file_type.upper()}") and is_path_like(f"chair.{file_type}")


@pytest.mark.parametrize("name", ["bert-base-uncased", "facebook/dinov2-base", "me/v1.5", "me/model.v2", "a_b/c--d"])
def test_names_on_the_hub_are_not_paths(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_path_like(name)
    check_name(name)


def test_a_folder_called_like_an_owner_hides_no_model_that_is_in_the_cache(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().push_to_hub("me-here/classifier")
    (tmp_path / "me-here" / "classifiers").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError,
        match="on the Hub, download it first: hf download me-here/classifier$",
    ):
        Any2PointForPointCloudClassification.from_pretrained("me-here/classifier")
    (tmp_path / "me-here" / "classifiers").rmdir()
    Any2PointForPointCloudClassification.from_pretrained("me-here/classifier")
    (tmp_path / "me-there").mkdir()  # nearly the owner's name, and nothing in it
    assert not is_path_like("me-hare/classifier")
    (tmp_path / "me-here" / "classifiers").mkdir()
    Any2PointForPointCloudClassification.from_pretrained("me-here/classifier")


@pytest.mark.parametrize("entry_point", MODELS)
def test_offline_use_of_what_is_not_in_the_cache_is_one_line(hub, monkeypatch, entry_point):
    monkeypatch.setenv(SILENT_HUB, "1")
    before = len(hub.requests)
    with pytest.raises(
        OSError, match="me/never-fetched: no such directory.*the Hub did not answer.*connect to a network"
    ) as caught:
        OPEN[entry_point]("me/never-fetched")
    assert "\n" not in str(caught.value) and len(hub.requests) == before


def test_use_of_the_cache_alone_is_checked_without_the_variable(hub):
    with raises(OSError, naming="local_files_only"):
        PointCloudProcessor.from_pretrained("me/never-fetched", revision="v2", local_files_only=True)


def test_names_without_an_owner_are_paths_where_one_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_path_like("bert") and is_path_like("bert", needs_owner=True)
    assert not is_path_like("me/bert", needs_owner=True)
    check_path("bert")
    with pytest.raises(FileNotFoundError, match="^bert: no such directory, and not looked up on the Hub"):
        check_path("bert", needs_owner=True)
