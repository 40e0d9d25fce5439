"""info, push and space."""

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from hf_any3d import AutoModelForPointCloudClassification
from tests.cli.conftest import run

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


@pytest.mark.slow
def test_facts_are_counted_once_for_each_configuration(models, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(models("classifier"), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_tokens": 6}))  # as in no other test
    first = run("info", model, "--json")
    kept = max(Path(constants.HF_HOME, "hf_any3d", "facts").glob("*.json"), key=os.path.getmtime)
    kept.write_text('{"class": "as it was kept"}')
    again = json.loads(run("info", model, "--json").out)
    assert first.code == 0 and again == {"class": "as it was kept", "model": str(model)}
    kept.unlink()
    (model / "config.json").write_text(json.dumps(config | {"num_tokens": 5}))
    counted = json.loads(run("info", model, "--json").out)
    assert counted["class"] == json.loads(first.out)["class"] and counted["tokens"] == 5


@pytest.fixture
def trained(models, tmp_path) -> Path:
    """A saved model with the checkpoints, logs and locks of its training."""
    folder = tmp_path / "mine"
    shutil.copytree(models("classifier"), folder)
    for name in (
        "checkpoint-10/model.safetensors",
        "runs/events",
        "_lock",
        ".cache/x",
        ".env",
        ".eval_results/a.yaml",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    return folder


@pytest.mark.slow
def test_a_pushed_model_opens_and_its_card_names_the_repository(trained, hub):
    code, out, _ = run("push", trained, "me/pushed-by-command")
    assert code == 0 and out.startswith("model me/pushed-by-command: ")
    files = hub.files("me/pushed-by-command")
    assert {"adapter_model.safetensors", "config.json", "README.md", ".eval_results/a.yaml"} <= set(files)
    assert not [name for name in files if name.startswith(("checkpoint", "runs", "_", ".cache", ".env"))]
    card = hub.content("me/pushed-by-command", "README.md").decode()
    assert '"me/pushed-by-command"' in card and "# pushed-by-command" in card and str(trained) not in card
    assert AutoModelForPointCloudClassification.from_pretrained("me/pushed-by-command").config.num_labels == 3


@pytest.mark.slow
def test_an_edited_card_is_pushed_as_it_is_and_a_missing_one_is_written(trained, hub):
    (trained / "README.md").write_text("# My model\n\nI wrote this.\n")
    assert run("push", trained, "me/edited-card").code == 0
    assert hub.content("me/edited-card", "README.md").decode() == "# My model\n\nI wrote this.\n"
    (trained / "README.md").unlink()
    code, out, _ = run("push", trained, "me/new-card", "--json")
    assert code == 0
    newest = huggingface_hub.HfApi().list_repo_commits("me/new-card")[0].commit_id
    url = f"{constants.ENDPOINT}/me/new-card"
    assert json.loads(out) == {"repository": "me/new-card", "kind": "model", "url": url, "commit": newest}
    assert '"me/new-card"' in hub.content("me/new-card", "README.md").decode()


@pytest.mark.slow
def test_only_models_and_prepared_data_are_pushed(tmp_path, hub):
    assert "no model in this directory" in run("push", tmp_path, "me/nothing").err
    assert "no such directory" in run("push", tmp_path / "typo", "me/nothing").err
    assert "./local: a path; expected the name of a repository on the Hub" in run("push", tmp_path, "./local").err
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes(b"PAR1")
    refused = run("push", tmp_path, "a/b/c")
    assert refused.code == 1 and "a/b/c: a path" in refused.err
    assert run("push", tmp_path, "me/prepared-data").out.startswith("dataset me/prepared-data: ")
    assert list(hub.files("me/prepared-data", kind="dataset")) and "data/train.parquet" in hub.files(
        "me/prepared-data", kind="dataset"
    )


@pytest.mark.slow
def test_a_private_repository_is_private(trained, hub):
    assert run("push", trained, "me/for-all").code == run("push", trained, "me/for-few", "--private").code == 0
    api = huggingface_hub.HfApi()
    assert [api.model_info(name).private for name in ("me/for-all", "me/for-few")] == [False, True]


@pytest.mark.slow
def test_a_space_has_a_program_requirements_and_a_card(trained, tmp_path, hub):
    run("push", trained, "me/for-a-space")
    code, out, _ = run("space", "me/for-a-space", "--output", tmp_path / "space", "--title", 'A "good" page: 1')
    assert code == 0 and "publish it: hf upload OWNER/NAME" in out
    program = (tmp_path / "space" / "app.py").read_text()
    compile(program, "app.py", "exec")
    assert "'demo', 'me/for-a-space'" in program or "\"demo\", 'me/for-a-space'" in program
    assert (tmp_path / "space" / "requirements.txt").read_text().startswith("hf-any3d[demo]>=")
    import yaml

    metadata = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---")[1])
    assert metadata["title"] == 'A "good" page: 1' and metadata["sdk"] == "gradio"
    assert metadata["app_file"] == "app.py" and metadata["models"] == ["me/for-a-space"]
    assert "exists; give a new folder" in run("space", "me/for-a-space", "--output", tmp_path / "space").err
    assert f"hf-any3d push {trained} OWNER/NAME" in run("space", trained, "--output", tmp_path / "other").err
