"""Training in all its ways, each command in a process that has imported nothing before."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

from hf_any3d.hub.weights import OFFLINE_PACKAGES

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
SHORT = "--points 64 --batch-size 8"


@pytest.mark.slow
def test_options_of_training_work_without_network_and_without_an_encoder(shell, scans):
    done = shell(f"hf-any3d train scans --epochs 1 {SHORT}")
    assert "training starts from the bundled encoder" in done.err
    assert "outputs/scans: model, card and metrics.json" in done.out
    answer = json.loads(shell("hf-any3d predict scans/chair/0.ply --model outputs/scans --json").out)
    assert {entry["label"] for entry in answer[0]["predictions"]} <= {"chair", "lamp", "sofa", "table"}


@pytest.mark.slow
def test_the_offline_extra_brings_the_encoder(shell, scans):
    module = OFFLINE_PACKAGES[ENCODER].module
    package = importlib.util.find_spec(module)
    if package is None or package.origin is None:
        pytest.skip(f"{module} is not installed")
    (shell.folder / "extra").mkdir()
    (shell.folder / "extra" / module).symlink_to(Path(package.origin).parent)
    command = f"hf-any3d train scans --max_steps 2 {SHORT} --output outputs/offline"
    done = shell(command, PYTHONPATH=str(shell.folder / "extra"))
    assert "bundled encoder" not in done.err
    assert ENCODER in shell("hf-any3d info outputs/offline --json").out


@pytest.fixture(scope="module")
def online(open_shell, hub, sentence_encoder):
    """A shell with a hub that has a tiny encoder, and the same scans."""
    from tests.doors.conftest import write_scans

    shell = open_shell(hub.url)
    write_scans(shell.folder / "scans", count=3)
    return shell


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "--way trained --peft lora --max_steps 2",
        "--model_type pointnet --augment 'scale rotate' --epochs 1",
        "--way both --epochs 1",
    ],
)
def test_each_way_of_training_makes_a_model_that_answers(options, online, sentence_encoder):
    encoder = "" if "pointnet" in options else f"--encoder {sentence_encoder} --num_tokens 8 --tokenizer_neighbors 8"
    folder = "outputs/" + options.split()[1].strip("'")
    done = online(f"hf-any3d train scans {options} {SHORT} {encoder} --output {folder}")
    assert f"{folder}: model, card and metrics.json" in done.out
    # Here, in another process than that of the training.
    classify = pipeline("point-cloud-classification", model=str(online.folder / folder))
    (best,) = classify(str(online.folder / "scans/lamp/0.ply"), top_k=1)
    assert best["label"] in ("chair", "lamp", "sofa", "table")


def test_points_of_own_scans_are_learned_evaluated_and_labeled(online, sentence_encoder):
    random = np.random.default_rng(0)
    for number in range(6):
        points = random.uniform(-1, 1, size=(300, 3))
        rows = np.column_stack([points, points[:, 2] > 0])
        header = "ply\nformat ascii 1.0\nelement vertex 300\n"
        header += "".join(f"property {kind}\n" for kind in ("float x", "float y", "float z", "int label"))
        path = online.folder / f"halves/{number}.ply"
        path.parent.mkdir(exist_ok=True)
        np.savetxt(path, rows, fmt="%.5f %.5f %.5f %d", header=header + "end_header", comments="")
    encoder = f"--encoder {sentence_encoder} --num_tokens 8 --tokenizer_neighbors 4"
    done = online(f"hf-any3d train halves --task segmentation {encoder} {SHORT} --max_steps 2 --output outputs/halves")
    assert "try: hf-any3d segment FILE --model outputs/halves" in done.out
    assert "mean IoU" in online("hf-any3d evaluate outputs/halves halves").out
    done = online("hf-any3d segment halves/0.ply --model outputs/halves --output labeled.ply")
    assert "300 points" in done.out and (online.folder / "labeled.ply").is_file()


@pytest.mark.slow
def test_boxes_of_a_folder_are_learned_and_found(shell):
    random = np.random.default_rng(0)
    boxes = {}
    for number in range(4):
        floor = np.concatenate([random.uniform(-2, 2, size=(400, 2)), np.zeros((400, 1))], axis=1)
        center = np.array([*random.uniform(-1, 1, size=2), 0.5])
        table = center + random.uniform(-0.5, 0.5, size=(400, 3))
        shell.write(f"rooms/room{number}.ply", np.concatenate([floor, table]))
        boxes[f"room{number}.ply"] = [{"label": "table", "center": center.tolist(), "size": [1, 1, 1], "heading": 0}]
    (shell.folder / "rooms/boxes.json").write_text(json.dumps(boxes))
    small = """--model_config '{"num_tokens": 32, "num_queries": 8}'"""
    done = shell(f"hf-any3d train rooms --epochs 1 --points 256 --augment flip turn {small}")
    assert "try: hf-any3d detect FILE --model outputs/rooms" in done.out
    assert "mAP@25" in shell("hf-any3d evaluate outputs/rooms rooms").out
    answer = shell("hf-any3d detect rooms/room0.ply --model outputs/rooms --threshold 0 --top-k 2 --json")
    assert len(json.loads(answer.out)[0]["boxes"]) == 2


@pytest.mark.slow
def test_a_recipe_of_the_package_runs(online, sentence_encoder):
    done = online(
        f"hf-any3d train quickstart.yaml --max_steps 2 --encoder {sentence_encoder} --output outputs/recipe "
        "--num_points 64 --max_train_samples 16 --max_eval_samples 8 --voting 0"
    )
    assert "outputs/recipe: model, card and metrics.json" in done.out
