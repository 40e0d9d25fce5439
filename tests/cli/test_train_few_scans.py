"""`hf-any3d train` on few scans: frozen features with a linear head, without a network or settings."""

import json
import sys

import numpy as np
import pytest
import torch
from peft import get_peft_model

from hf_any3d import AutoModelForPointCloudClassification, GuidedAdapterConfig
from hf_any3d.training.few_scans.plan import WRAP_SHARPNESS
from tests.cli.conftest import run
from tests.data.files.builders import las
from tests.tiny_encoders import saved_encoder, tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

SMALL = ("--points", 128, "--copies", 2, "--unlike", 14)
FASTEST = ("--points", 64, "--copies", 1, "--feature_sets", "descriptors", "--unlike", 7)


def write_scans(folder, each, classes=("ball", "stick"), start=0):
    """Balls and sticks, all of other sizes."""
    for label in classes:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + each):
            generator = np.random.default_rng([number, len(label)])
            size = generator.uniform(0.8, 1.2, 3) * ([1, 1, 1] if label == "ball" else [0.3, 2, 0.3])
            np.save(folder / label / f"{number}.npy", (generator.normal(size=(150, 3)) * size).astype(np.float32))
    return folder


@pytest.fixture(autouse=True)
def connections(monkeypatch, tmp_path):
    """Addresses that a command tries to reach; there is no network."""
    tried: list[object] = []

    def connect(_, address):
        tried.append(address)
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.chdir(tmp_path)
    return tried


@pytest.mark.slow
def test_ten_scans_become_a_model_that_says_how_sure_it_is(tmp_path, connections):
    write_scans(tmp_path / "scans", 5)
    code, out, err = run("train", "scans", *SMALL)
    assert code == 0 and connections == [], err
    seen, way, sure, confused, unknown, last = out.splitlines()
    assert seen == "scans: 10 scans of 2 classes, 5 each; 0 near-duplicates; up axis y"
    assert "frozen encoder features, mean of 2 copies" in way and way.endswith("with a linear head; as requested")
    assert sure == (
        "accuracy: 100 % (10 of 10 scans; 95 % interval 72 to 100 %), by cross-validation in 5 folds; the saved model "
        "is trained on all 10"
    )
    assert confused == "confused: no classes confused" and unknown.startswith(
        # Of 10 scans none was refused: Clopper and Pearson's limit is 1 - 0.05 ** (1 / 10).
        "none of these: wrongly flags about 9 % of scans of known classes (at most 26 % with 95 % confidence, from 10 "
    )
    assert last == "outputs/scans: model, card and metrics.json; try: hf-any3d predict FILE --model outputs/scans"
    metrics = json.loads((tmp_path / "outputs" / "scans" / "metrics.json").read_text())
    assert metrics["metrics"]["cross-validation"]["accuracy"] == 1.0 and metrics["data"]["rows"] == {"train": 10}
    card = (tmp_path / "outputs" / "scans" / "README.md").read_text()
    assert "## Confidence" in card and "95 % interval 72 to 100 %" in card and "| ball | 5 | 5 |" in card
    assert "last step" not in card and "fitted to all training clouds" in card

    new = write_scans(tmp_path / "new", 1, start=50)
    code, out, err = run("predict", new, "--model", "outputs/scans", "--json")
    assert code == 0, err
    assert [row["predictions"][0]["label"] for row in json.loads(out)] == ["ball", "stick"]
    config = json.loads((tmp_path / "outputs/scans/config.json").read_text())
    assert config["unknown"]["rows"] == 10 and config["unknown"]["bank_rows"] == 14
    code, out, err = run("evaluate", "outputs/scans", new)
    assert code == 0 and "accuracy 100.00 %" in out, err
    code, _, err = run("predict", "scans", new, "--model", "outputs/scans")
    (line,) = [line for line in err.splitlines() if "was trained on this scan" in line]
    assert code == 0 and "10 files" in line


@pytest.mark.slow
def test_one_scan_a_class_is_learned_and_says_that_nothing_tells_how_well(tmp_path):
    write_scans(tmp_path / "scans", 1)
    code, out, err = run("train", "scans", *FASTEST)
    assert code == 0, err
    assert "accuracy: not evaluated, as no class has two distinct scans" in out and "outputs/scans: model" in out
    code, out, _ = run("predict", write_scans(tmp_path / "new", 1, start=5), "--model", "outputs/scans", "--json")
    assert [row["predictions"][0]["label"] for row in json.loads(out)] == ["ball", "stick"]


@pytest.mark.slow
def test_scans_are_added_to_a_model_and_old_features_reused(tmp_path):
    write_scans(tmp_path / "scans", 3)
    assert run("train", "scans", *FASTEST).code == 0
    # Two new ones of a class that there is, one of a new class, and one that is known.
    write_scans(tmp_path / "more", 2, ("stick",), start=3)
    write_scans(tmp_path / "more", 1, ("cone",), start=3)
    (tmp_path / "more" / "ball").mkdir()
    (tmp_path / "more" / "ball" / "again.npy").write_bytes((tmp_path / "scans" / "ball" / "0.npy").read_bytes())
    code, out, err = run("train", "more", "--from", "outputs/scans", "--output", "outputs/all", "--unlike", 7)
    assert code == 0, err
    assert "more and the earlier ones: 9 scans of 3 classes, 1 (cone) to 5 (stick)" in out
    assert "not evaluated: cone, with a single distinct scan" in out
    assert "with a linear head; features and copies of the earlier model" in out
    config = json.loads((tmp_path / "outputs" / "all" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["ball", "cone", "stick"] and config["unknown"]["rows"] == 9
    # The same scans at once give the same model.
    write_scans(tmp_path / "more", 3)
    (tmp_path / "more" / "ball" / "again.npy").unlink()
    assert run("train", "more", "--output", "outputs/once", *FASTEST).code == 0
    new = write_scans(tmp_path / "new", 1, ("ball", "cone", "stick"), start=70)
    answers = [json.loads(run("predict", new, "--model", f"outputs/{name}", "--json").out) for name in ("all", "once")]
    for one, other in zip(*answers, strict=True):
        assert one["predictions"][0]["label"] == other["predictions"][0]["label"]
        assert one["predictions"][0]["score"] == pytest.approx(other["predictions"][0]["score"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda folder: write_scans(folder, 3, ("ball",)), "all scans are in one class, 'ball'"),
        (lambda folder: write_scans(folder, 1, ("ball",)), "all scans are in one class, 'ball'"),
        (
            lambda folder: write_scans(folder, 2, ("ball", "Ball")),
            "'Ball' (2 scans) and 'ball' (2) differ only in case",
        ),
    ],
)
def test_scans_that_cannot_be_learned_are_one_line(change, text, tmp_path):
    change(tmp_path / "scans")
    code, out, err = run("train", "scans", *FASTEST)
    assert code == 1 and out == "" and text in err and err.count("\n") == 1


@pytest.mark.slow
def test_a_floor_is_unlike_scans_that_know_drawn_things(tmp_path):
    write_scans(tmp_path / "scans", 6)
    assert run("train", "scans", *FASTEST[:-1], 70).code == 0
    assert run("train", "scans", *FASTEST[:-1], 0, "--output", "outputs/alone").code == 0
    generator = np.random.default_rng(0)
    (tmp_path / "floors").mkdir()
    for number in range(4):
        floor = generator.uniform(-1, 1, (200, 3)) * (1, 0.01, generator.uniform(0.6, 1))
        np.save(tmp_path / "floors" / f"{number}.npy", floor.astype(np.float32))
    scores = {}
    for name in ("scans", "alone"):
        answers = json.loads(run("predict", "floors", "--model", f"outputs/{name}", "--json").out)
        scores[name] = min(row["predictions"][0]["unknown"] for row in answers)
    assert scores["scans"] > max(0.5, scores["alone"])


@pytest.mark.slow
def test_a_scan_from_one_side_is_told_from_whole_ones(tmp_path):
    """Hulls of boxes and balls; the half that an eye sees is a remark, the whole is none, and neither is an answer."""

    def shell(label, number, count=1500):
        generator = np.random.default_rng([number, len(label)])
        directions = generator.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        if label == "cube":
            directions /= np.abs(directions).max(axis=1, keepdims=True)
        return (directions * generator.uniform(0.8, 1.2, 3)).astype(np.float32)

    for label in ("cube", "ball"):
        (tmp_path / "scans" / label).mkdir(parents=True)
        for number in range(8):
            np.save(tmp_path / "scans" / label / f"{number}.npy", shell(label, number))
    options = ("--points", 512, "--copies", 1, "--feature_sets", "descriptors", "--unlike", 14)
    code, _, err = run("train", "scans", *options)
    assert code == 0, err
    (tmp_path / "new").mkdir()
    for number in range(50, 54):
        whole = shell("ball", number)
        np.save(tmp_path / "new" / f"whole{number}.npy", whole)
        np.save(tmp_path / "new" / f"half{number}.npy", whole[whole @ np.float32([0.6, 0.5, 0.6]) > 0])
    code, out, err = run("predict", "new", "--model", "outputs/scans", "--json")
    assert code == 0
    told = [
        row for row in json.loads(out) if any("as if seen from one side" in text for text in row.get("warnings", ()))
    ]
    assert len(told) >= 3 and all("half" in row["file"] for row in told), err
    assert ": looks as if seen from one side" in err
    assert all(set(row["predictions"][0]) == {"label", "score", "unknown"} for row in json.loads(out))
    assert run("train", "scans", *options, "--one_sided", "false", "--output", "outputs/none").code == 0
    assert "side" not in run("predict", "new", "--model", "outputs/none").err
    # Views are learned if asked for, and by what is added to such a model.
    said = run("train", "scans", *options, "--views", "true", "--output", "outputs/views").out
    assert "views: the model also trains on a one-sided view of each scan" in said and "accuracy on views" in said
    (tmp_path / "more" / "ball").mkdir(parents=True)
    np.save(tmp_path / "more" / "ball" / "9.npy", shell("ball", 9))
    assert "17 scans" in (said := run("train", "more", "--from", "outputs/views", "--output", "outputs/more").out)
    assert "views: " in said and "side" not in run("predict", "new", "--model", "outputs/more").err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ("--way", "features", "--epochs", 3),
            "--epochs has no effect with --way features; leave it out",
        ),
        (("--way", "trained", "--copies", 3), "--copies has no effect here; use it with --way features"),
        (("--feature_set", "encoder"), "no option --feature_set; did you mean --feature_sets?"),
        (("--feature_sets", "magic"), "features=['magic']; expected some of"),
        (("--heading", "north"), "heading='north'; expected one of 'known'"),
        (("--from", "nowhere"), "nowhere: no such directory"),
        (("--way", "trained", "--from", "scans"), "no model in this directory"),
    ],
)
def test_wrong_options_are_one_line(words, text, tmp_path):
    write_scans(tmp_path / "scans", 2)
    code, out, err = run("train", "scans", *words)
    assert code == 1 and out == "" and text in err and err.count("\n") == 1, err


LISTED: list[str] = []
"""Folders whose files were listed, as each load of a folder does once."""
sys.addaudithook(lambda event, given: LISTED.append(str(given[0])) if event == "os.walk" else None)


@pytest.mark.parametrize("way", [None, "features", "trained", "both"])
def test_scans_are_loaded_once(way, tmp_path):
    write_scans(tmp_path / "scans", 3)
    words = [*FASTEST[:2], *([] if way is None else ["--way", way]), *([] if way == "trained" else FASTEST[2:])]
    if way in ("trained", "both"):
        words += ["--encoder", saved_encoder("bert"), "--epochs", 1, "--num_tokens", 8, "--use_cpu"]
    LISTED.clear()
    code, _, err = run("train", tmp_path / "scans", *words)
    assert code == 0, err
    assert LISTED.count(str(tmp_path / "scans")) == 1


@pytest.mark.slow
def test_a_wrap_is_trained_and_answers_together_with_a_linear_head(tmp_path):
    write_scans(tmp_path / "scans", 4)
    words = ("--way", "both", "--encoder", saved_encoder("bert"), "--epochs", 2, "--num_tokens", 8)
    code, out, err = run("train", "scans", *FASTEST, *words)
    assert code == 0, err
    assert "averaged with the predictions of a trained adapter" in out and "of the linear head alone" in out
    config = json.loads((tmp_path / "outputs/scans/config.json").read_text())
    assert config["wrap_labels"] == 2 and config["wrap_adapter"]["peft_type"] == "GUIDED_ADAPTER"
    model = AutoModelForPointCloudClassification.from_pretrained("outputs/scans").eval()
    clouds = torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.point_features(clouds).pooler_output
        # The wrap's answers count half, and nothing in distances between features.
        columns = features[:, -2:]
        assert columns.abs().max() < 0.01
        model.classifier.weight[:, :-2] = 0
        model.classifier.bias.zero_()
        own = model.point_features.wrap_head(model.point_features.wrap(clouds).pooler_output).log_softmax(-1)
        torch.testing.assert_close(model(clouds).logits, 0.5 * WRAP_SHARPNESS * own, atol=1e-3, rtol=1e-3)
    new = write_scans(tmp_path / "new", 1, start=9)
    code, out, err = run("predict", new, "--model", "outputs/scans", "--json")
    assert code == 0 and [row["predictions"][0]["label"] for row in json.loads(out)] == ["ball", "stick"], err
    code, _, err = run("train", new, "--from", "outputs/scans", "--output", "outputs/more")
    assert code == 1 and "train again with --way both on all scans" in err
    code, _, err = run("train", "scans", "--way", "both", "--wrap", "outputs/scans")
    assert code == 1 and "--wrap cannot be combined with --way both" in err and err.count("\n") == 1


def test_a_model_stays_until_that_of_both_ways_is_learned(tmp_path):
    write_scans(tmp_path / "scans", 2)
    assert run("train", "scans", *FASTEST).code == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "outputs" / "scans").iterdir() if file.is_file()}
    # The scans are right, and so is the config of the encoder; its weights are found damaged when they are loaded.
    tiny_config("bert").save_pretrained(tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"")
    asked = ("train", "scans", *FASTEST, "--strength", 3, "--encoder", "cut", "--way", "both")
    # Whatever would be learned, a model is not replaced without a word.
    for words in (("train", "scans"), ("train", "scans", "--output", "outputs/scans", *FASTEST), asked):
        code, out, err = run(*words)
        assert code == 1 and out == "" and err.startswith("error: outputs/scans holds a classifier of ball, stick")
        assert "--overwrite" in err
    code, out, err = run(*asked, "--overwrite")
    assert code == 1 and out == "" and "cut/model.safetensors: the weights cannot be used" in err
    after = {file.name: file.read_bytes() for file in (tmp_path / "outputs" / "scans").iterdir() if file.is_file()}
    assert after == before


@pytest.mark.slow
def test_a_wrap_with_an_adapter_gives_features_and_a_damaged_one_is_one_line(tmp_path):
    get_peft_model(tiny_model(), GuidedAdapterConfig()).save_pretrained(tmp_path / "adapted")
    write_scans(tmp_path / "scans", 2)
    words = ("--wrap", "adapted", *FASTEST[:4], "--unlike", 7, "--feature_sets", "wrap")
    code, out, err = run("train", "scans", *words)
    assert code == 0 and "frozen wrap features" in out, err
    (tmp_path / "adapted" / "adapter_model.safetensors").unlink()
    code, out, err = run("train", "scans", "--overwrite", *words)
    assert code == 1 and out == "" and err.count("\n") == 1 and "adapted" in err


def test_scans_with_another_axis_up_are_not_added_to_a_model(tmp_path):
    write_scans(tmp_path / "scans", 2)
    assert run("train", "scans", *FASTEST).code == 0
    for label, count in (("ball", 150), ("stick", 200)):
        (tmp_path / "aerial" / label).mkdir(parents=True)
        (tmp_path / "aerial" / label / "a.las").write_bytes(las(False, count=count)[1])
    code, out, err = run("train", "aerial", "--from", "outputs/scans", "--output", "outputs/more")
    assert code == 1 and "outputs/scans: it has y up, but these scans have z up; rotate them first" in err
    assert run("train", "aerial", "--allow_doubts", *FASTEST, "--output", "outputs/aerial").code == 0
    assert AutoModelForPointCloudClassification.from_pretrained("outputs/aerial").config.up_axis == "z"
