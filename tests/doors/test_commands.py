"""Commands about files, each in a process of its own, besides the examples of docs/command_line.md.

They are forks, but where a new interpreter matters: one command from its first import on, workers, and services.
"""

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest
import torch

from tests.cli.conftest import FILES, save
from tests.conversions.aligned_originals import openshape_flat
from tests.doors.conftest import NEW
from tests.release import ROOT

KINDS = ("classifier", "detector", "chat")


@pytest.fixture(scope="module")
def models(shell):
    """Tiny models of each kind in the folder `models` of the shell, and the example chair beside it."""
    for kind in KINDS:
        save(kind, shell.folder / "models" / kind)
    shutil.copy(ROOT / "examples" / "data" / "chair.ply", shell.folder)
    return shell.folder / "models"


@pytest.mark.slow
def test_the_packaged_model_reads_every_file_type(shell):
    shutil.copytree(FILES, shell.folder / "files")
    answers = json.loads(shell("hf-any3d predict files --json --top-k 1", **NEW).out)
    types = {answer["file"].rpartition(".")[2] for answer in answers}
    assert types >= {"glb", "npy", "npz", "obj", "off", "pcd", "ply", "pts", "stl", "xyz"}
    assert all(answer["predictions"] for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, expected",
    [
        ("predict - --up-axis y --votes 3 < chair.ply", "chair"),
        ("detect chair.ply --model models/detector --threshold 0 --top-k 2", "2 boxes"),
        ("detect chair.ply --model models/detector --output boxes.csv --resume", "1 file"),
        ("features chair.ply --model models/classifier --output vectors.parquet --resume", "1 file"),
        ("predict chair.ply --workers 2 --output labels.json", "1 file"),
        ("export models/chat --output language_model --format language-model", "language_model"),
        ("show chair.ply --output chair.png", "chair.png"),
    ],
)
def test_a_command_answers(command, expected, shell, models):
    environment = NEW if "--workers" in command else {}
    assert expected in shell(f"hf-any3d {command}", **environment).text


@pytest.mark.slow
def test_a_chat_answers_each_line(shell, models):
    done = shell("hf-any3d chat models/chat chair.ply --max-new-tokens 4", stdin="What is this?\nAnd now?\n/quit\n")
    assert done.out.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, expected",
    [
        ("predict chair.ply --model someone/classifier", ["someone/classifier", "the Hub did not answer"]),
        ("segment chair.ply", ["choose a model with --model", "facebook/sonata"]),
        (
            "detect chair.ply --model manycore-research/SpatialLM1.1-Qwen-0.5B --task all",
            ["license", "--accept-license"],
        ),
        (
            "detect chair.ply --model manycore-research/SpatialLM1.1-Qwen-0.5B --task all --accept-license",
            ["the Hub did not answer"],
        ),
    ],
)
def test_a_refusal_says_what_to_do(command, expected, shell, models):
    # What a command does without a network is decided before the libraries are imported.
    environment = NEW if "someone" in command or "--accept-license" in command else {}
    error = shell(f"hf-any3d {command}", code=1, **environment).err
    assert all(word in error for word in expected), error
    assert "HF_HUB_OFFLINE" not in error and "accept_license" not in error


@pytest.mark.slow
def test_a_file_of_the_authors_is_converted_and_opened(shell):
    torch.save(openshape_flat("vitb32"), shell.folder / "model.pt")
    refused = shell("hf-any3d convert model.pt --output outputs/openshape --stage 2", code=1)
    assert "--stage: not for a file of OpenShape; expected --" in refused.err
    shell("hf-any3d convert model.pt --output outputs/openshape")
    assert "features:" in shell("hf-any3d features chair.ply --model outputs/openshape").out


@pytest.mark.slow
def test_depth_images_become_clouds(shell):
    from PIL import Image

    (shell.folder / "depth").mkdir()
    for number in range(2):
        depth = torch.full((48, 64), 1500 + number, dtype=torch.int32).numpy().astype("uint16")
        Image.fromarray(depth).save(shell.folder / "depth" / f"{number}.png")
    camera = {"K": [60, 0, 32, 0, 60, 24, 0, 0, 1], "width": 64, "height": 48}
    (shell.folder / "camera.json").write_text(json.dumps(camera))
    shell("hf-any3d data from-depth depth --intrinsics camera.json --output clouds")
    assert len(list((shell.folder / "clouds").iterdir())) == 2


@pytest.mark.slow
def test_the_service_answers_over_http_and_ends_when_it_is_told_to(shell, models):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["bash", "-c", f"exec hf-any3d serve models/classifier --port {port}"]
    service = subprocess.Popen(command, cwd=shell.folder, env=shell.environment, stderr=subprocess.PIPE, text=True)
    try:
        answer = _classify(f"http://127.0.0.1:{port}/v1/classify", shell.folder / "chair.ply", service)
        assert {"label", "score"} <= set(answer["answers"][0]["labels"][0])
    finally:
        service.send_signal(signal.SIGTERM)
        _, errors = service.communicate(timeout=60)
    assert service.returncode == 0 and "Traceback" not in errors, errors


def _classify(address, file, service):
    boundary = "points"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\n\r\n'.encode()
        + file.read_bytes()
        + f"\r\n--{boundary}--\r\n".encode()
    )
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    while service.poll() is None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, body, kind), timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            # While the model is being loaded
            if error.code != 503:
                raise AssertionError(error.read().decode()) from error
            time.sleep(0.2)
        except urllib.error.URLError:
            time.sleep(0.2)
    raise AssertionError(f"the service ended: {service.communicate()}")
