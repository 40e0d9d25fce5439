"""Files that come back with classes, each by a command, program or service in a process of its own."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request

import numpy as np
import pytest

from hf_any3d import DgcnnForSemanticSegmentation, PointCloudProcessor
from tests.data.files.builders import las
from tests.tiny_baselines import tiny_baseline

laspy = pytest.importorskip("laspy")
CODES = [2, 5, 6]


@pytest.fixture(scope="module")
def street(shell):
    """A model of three classes with names of ASPRS, and scans in the folder of the shell."""
    names = dict(enumerate(["ground", "high vegetation", "building"]))
    tiny_baseline(DgcnnForSemanticSegmentation, id2label=names).save_pretrained(shell.folder / "model")
    processor = PointCloudProcessor(num_points=64, scale=None, block_size=5.0, up_axis="z")
    processor.save_pretrained(shell.folder / "model")
    (shell.folder / "scans" / "north").mkdir(parents=True)
    (shell.folder / "street.laz").write_bytes(las(True, 7)[1])
    (shell.folder / "scans" / "a.laz").write_bytes(las(True, 7)[1])
    (shell.folder / "scans" / "north" / "a.las").write_bytes(las(False, 1)[1])
    return shell.folder / "street.laz"


def assert_labeled(old, new):
    before, after = laspy.read(old), laspy.read(new)
    assert set(np.unique(after.classification)) <= set(CODES)
    for name in set(before.point_format.dimension_names) - {"classification"}:
        np.testing.assert_array_equal(after[name], before[name])


def test_a_command_labels_a_scan(street, shell):
    done = shell("hf-any3d segment street.laz --model model --output labeled.laz --score")
    assert "200 points" in done.out and "labeled.laz" in done.err
    assert_labeled(street, shell.folder / "labeled.laz")
    assert "score" in laspy.read(shell.folder / "labeled.laz").point_format.extra_dimension_names
    assert "building" in shell("hf-any3d show labeled.laz --output shown.html && cat shown.html").out
    shell("hf-any3d segment street.laz --model model --output other.las --classes ground=11,*=1")
    assert set(np.unique(laspy.read(shell.folder / "other.las").classification)) <= {1, 11}
    for words, culprit in (("--output street.laz", "street.laz"), ("--output a.html --score", "--score")):
        assert culprit in shell(f"hf-any3d segment street.laz --model model {words}", code=1).err


def test_folders_of_scans_come_back_as_folders(street, shell):
    shell("hf-any3d segment scans --model model --output pages")
    shell("hf-any3d segment scans --model model --output labeled --resume")
    for folder in ("pages", "labeled"):
        for name in ("a.laz", "north/a.las"):
            assert_labeled(shell.folder / "scans" / name, shell.folder / folder / name)
    assert (shell.folder / "pages" / "a.html").exists()
    rows = [json.loads(line) for line in (shell.folder / "labeled" / "results.jsonl").read_text().splitlines()]
    assert [row["points"] for row in rows] == [200, 200] and rows[0]["output"].endswith("a.laz")
    assert "2 already done" in shell("hf-any3d segment scans --model model --output labeled --resume").out


def test_a_program_labels_a_scan(street, shell):
    shell.run(
        "import hf_any3d\nfrom transformers import pipeline\n"
        "segment = pipeline('point-cloud-segmentation', model='model')\n"
        "labels = segment('street.laz', write='program.laz')['labels']\n"
        "hf_any3d.write_labels('street.laz', 'by_hand.laz', labels, codes=[2, 5, 6])\n"
    )
    assert_labeled(street, shell.folder / "program.laz")
    assert (shell.folder / "program.laz").read_bytes() == (shell.folder / "by_hand.laz").read_bytes()


def test_a_service_sends_the_file_back(street, shell):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shutil.which("hf-any3d", path=shell.environment["PATH"])
    assert command is not None
    words = [command, "serve", "model", "--port", str(port)]
    with subprocess.Popen(words, cwd=shell.folder, env=shell.environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/ready", process)
            url = f"http://127.0.0.1:{port}/v1/segment/file"
            shell(f"curl -sf -F file=@street.laz -F scores=true -o served.laz {url}")
            refused = shell(f"curl -s -F file=@street.laz -F classes=lamp=3 {url}").out
        finally:
            process.terminate()
    assert_labeled(street, shell.folder / "served.laz")
    assert "score" in laspy.read(shell.folder / "served.laz").point_format.extra_dimension_names
    assert "lamp" in json.loads(refused)["error"]["message"]


def wait_for(url, process, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"{url} did not answer")
