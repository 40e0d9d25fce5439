"""A person with twenty scans and no network: from a folder to a shared model and back."""

import json

import numpy as np
import pytest

SCANS = "scans/chair/0.ply"


@pytest.fixture(scope="module")
def learned(shell, scans):
    """What `train scans` printed."""
    return shell("hf-any3d train scans")


@pytest.mark.slow
def test_scans_are_learned_without_settings(learned, shell):
    assert "20 scans of 4 classes, 5 each" in learned.out
    assert "by cross-validation" in learned.out
    assert "try: hf-any3d predict FILE --model outputs/scans" in learned.out
    assert (shell.folder / "outputs/scans/README.md").is_file()


@pytest.mark.slow
def test_prediction_and_evaluation_say_the_same_as_a_list_and_as_a_page(learned, shell):
    answers = json.loads(shell("hf-any3d predict scans --model outputs/scans --json --output page.html").out)
    right = sum(answer["predictions"][0]["label"] == answer["file"].split("/")[-2] for answer in answers)
    assert len(answers) == 20 and right >= 18
    page = (shell.folder / "page.html").read_text(encoding="utf-8")
    assert all(f"{label}/0.ply" in page for label in ("chair", "lamp", "sofa", "table"))
    done = shell("hf-any3d evaluate outputs/scans scans --json")
    assert json.loads(done.out)["metrics"]["all"]["accuracy"] == pytest.approx(right / len(answers))


@pytest.mark.slow
def test_more_scans_are_added(learned, shell):
    shell("mkdir -p more/lamp && cp scans/lamp/1.ply more/lamp/new.ply")
    done = shell("hf-any3d train more --from outputs/scans --output outputs/more")
    assert "4 classes" in done.out and (shell.folder / "outputs/more/config.json").is_file()


@pytest.mark.slow
def test_the_model_is_shared_and_answers_elsewhere_the_same(learned, shell, open_shell, hub):
    here = shell(f"hf-any3d predict {SCANS} --model outputs/scans --json").out
    elsewhere = open_shell(hub.url)
    pushed = elsewhere(f"hf-any3d push {shell.folder}/outputs/scans me/door-scans")
    assert "me/door-scans" in pushed.out
    there = elsewhere(f"hf-any3d predict {shell.folder / SCANS} --model me/door-scans --json").out
    scores = [
        {entry["label"]: entry["score"] for entry in json.loads(text)[0]["predictions"]} for text in (here, there)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.slow
def test_a_feature_that_is_asked_for_is_used_or_refused(shell):
    random = np.random.default_rng(0)
    for number in range(6):
        name = f"colored/{('dark', 'light')[number % 2]}/{number}.ply"
        shell.write(name, random.normal(size=(200, 3)), colors=np.full((200, 3), 0.2 + 0.6 * (number % 2)))
    done = shell("hf-any3d train colored --features xyz rgb", code=1)
    assert "rgb" in done.err and "--way trained" in done.err
