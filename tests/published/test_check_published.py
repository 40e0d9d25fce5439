"""`python -m tests.published.checks`: random weights fail for their answers alone, and weights with a meaning pass."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from hf_any3d import conversions
from hf_any3d.hub.licenses import ACCEPT
from hf_any3d.hub.published_table import PUBLISHED
from hf_any3d.modeling.records import Published, PublishedFile
from hf_any3d.pipelines import default_model
from tests.cli.conftest import run
from tests.conversions.aligned_originals import openshape_flat
from tests.published.checks import app
from tests.published.test_git_files import REPOSITORY as IN_GIT, in_git as in_git
from tests.published.test_published import forget, stored
from tests.tiny_text_towers import tiny_clip_files

pytestmark = [
    pytest.mark.usefixtures("libraries_as_they_were"),
    pytest.mark.filterwarnings("ignore:the processor's code_template lacks", "ignore:the answer", "ignore:.* clouds"),
]
OPENSHAPE, BIGG = "OpenShape/openshape-pointbert-vitb32-rgb", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
CLIP, SONATA, SUPERVISED = "openai/clip-vit-base-patch32", "facebook/sonata", "Pointcept/PointTransformerV3"


MINIGPT, PACKAGED = "YuanTang96/MiniGPT-3D", "stand-in/packaged"


@pytest.fixture
def publish(hub, monkeypatch):
    """A function that commits files under a name and leaves the table with what was committed alone."""
    names: list[str] = []
    whole = dict(PUBLISHED)
    monkeypatch.delenv(ACCEPT, raising=False)
    PUBLISHED.clear()

    def commit(name: str, content: dict[str, bytes], **changes: object) -> None:
        hub.commit(name, content, in_lfs=True)
        names.append(name)
        if name in whole:
            PUBLISHED[name] = dataclasses.replace(whole[name], **changes)

    commit.table, commit.names = whole, names
    yield commit
    monkeypatch.undo()
    PUBLISHED.clear()  # and not by the name, which would change the order
    PUBLISHED.update(whole)
    for name in names:
        huggingface_hub.delete_repo(name)
        forget(name)


def publish_openshape(publish, folder: Path) -> None:
    publish(OPENSHAPE, {"model.pt": stored(openshape_flat("vitb32"))})
    publish(CLIP, tiny_clip_files(folder / "clip", 512))


def publish_packaged(publish, monkeypatch) -> None:
    """The packaged classifier, whose weights have a meaning, as if its authors had published it."""

    def convert(checkpoint: Path, output: Path) -> None:
        shutil.copytree(checkpoint, output)
        shutil.copy(Path(default_model(), "README.md"), output)  # cards of authors are not fetched

    monkeypatch.setattr(conversions, "convert_packaged", convert, raising=False)
    system = dataclasses.replace(publish.table[OPENSHAPE].system, title="Packaged", convert="convert_packaged")
    entry = Published(system, {None: PublishedFile("config.json", parts={"checkpoint": "/"})})
    PUBLISHED[PACKAGED] = entry
    publish(PACKAGED, {file.name: file.read_bytes() for file in Path(default_model()).iterdir() if file.is_file()})


def checks(record: dict) -> dict[str, bool | None]:
    return {check["name"]: check["passed"] for check in record["checks"]}


@pytest.mark.slow
def test_weights_with_a_meaning_pass_and_random_ones_fail_for_their_answers_alone(publish, monkeypatch, tmp_path):
    publish_openshape(publish, tmp_path)
    publish_packaged(publish, monkeypatch)
    output = tmp_path / "runs.json"
    code, out, err = run("check", "--output", output, "--clouds", 26, program=app)
    assert code == 1 and "1 passed, 1 failed, 0 not opened" in err
    runs = json.loads(output.read_text())["runs"]
    assert checks(runs[PACKAGED]) == {"names of packaged test shapes": True}
    assert checks(runs[OPENSHAPE]) == {
        "zero-shot accuracy on packaged test shapes": False,
        "names of the example files": False,
    }
    assert f"{OPENSHAPE:<52} FAILED" in out and f"{PACKAGED:<52} passed" in out
    assert re.search(r"no  zero-shot accuracy on packaged test shapes: \d of \d\d right; chance is \d", out)
    record = runs[PACKAGED]
    assert record["class"] == "ActForPointCloudClassification" and record["parameters"] > 1e5
    assert (
        len(record["sha256"]) == 64 and len(record["revision"]) == 40 and record["seconds"].keys() == {"open", "judge"}
    )
    assert {"hf-any3d", "torch", "transformers"} <= record["versions"].keys()
    code, out, err = run("check", PACKAGED, "--output", output, "--json", program=app)
    assert code == 0 and f"{PACKAGED}: checked on {record['date']}; --again checks it once more" in err
    assert json.loads(out)[0]["checks"] == record["checks"]


@pytest.mark.slow
def test_names_that_are_not_published_and_files_of_others_are_refused(tmp_path):
    code, _, err = run("check", "me/mine", "--output", tmp_path / "runs.json", program=app)
    assert code == 1 and "me/mine: not a published checkpoint; expected one of " in err
    for text in ("[1]", json.dumps({"runs": {OPENSHAPE: {"passed": True}}})):
        (tmp_path / "mine.json").write_text(text)
        code, _, err = run("check", OPENSHAPE, "--output", tmp_path / "mine.json", program=app)
        assert code == 1 and "mine.json: no record of earlier checks" in err
        assert (tmp_path / "mine.json").read_text() == text


def test_check_published_finds_files_that_were_downloaded(in_git, tmp_path):
    (tmp_path / "mine").mkdir()
    in_git.rename(tmp_path / "mine" / "any_name")
    output = tmp_path / "runs.json"
    code, out, err = run("check", IN_GIT, "--files", tmp_path / "mine", "--output", output, program=app)
    # Its weights are random.
    assert code == 1 and "0 passed, 1 failed, 0 not opened" in err
    (check,) = json.loads(output.read_text())["runs"][f"{IN_GIT}:modelnet40"]["checks"]
    assert check["name"] == "names of packaged test shapes" and "after turns by 0, 90, 180 and 270" in check["seen"]
    assert "FAILED" in out
