"""Files of visitors, each read in a process of its own: once, in time, and whatever it does to that process."""

import multiprocessing
import os
import signal

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData, PointCloudFileError, isolated_reading, write_point_cloud
from hf_any3d.demo import uploads
from hf_any3d.demo.conversation import Conversation
from tests.chat.tiny_chat_model import cloud, tiny_chat_pipeline
from tests.demo import task_pages
from tests.errors import raises


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.ply"
    write_point_cloud(path, PointCloudData(cloud()[:, :3], cloud()[:, 3:]))
    return path


def test_uploads_are_read_once_and_without_the_model(file, tmp_path):
    pipe = tiny_chat_pipeline()
    opened, conversation = Conversation(pipe).open(file), Conversation(pipe)
    conversation.read(file)
    file.unlink()
    shape = conversation.open(file)
    assert shape.note == opened.note and np.array_equal(shape.points, opened.points)
    with raises((ValueError, OSError), naming="mine.ply"):
        conversation.open(file)  # it may have changed since it was read
    broken = tmp_path / "broken.ply"
    broken.write_text("nothing")
    conversation.read(broken)
    with raises(ValueError, naming="broken.ply") as caught:
        conversation.open(broken)
    assert str(tmp_path) not in str(caught.value)
    endless = tmp_path / "endless.xyz"
    endless.write_text("0.125 0.25 0.5\n" * 1_000_000)
    with raises(PointCloudFileError, naming="endless.xyz: took more than 0.02 seconds"):
        uploads.read_upload(endless, seconds=0.02)
    assert not multiprocessing.active_children()


def test_large_files_are_refused_before_they_are_read(tmp_path):
    with (tmp_path / "large.ply").open("wb") as file:
        file.truncate(uploads.LARGEST_UPLOAD + 1)
    visit = task_pages.Visit()
    visit.read(tmp_path / "large.ply")
    with pytest.raises(ValueError, match=r"^large.ply: 52,428,801 bytes; expected at most 52,428,800$"):
        visit.open(tmp_path / "large.ply")


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (
            lambda path, columns: os.kill(os.getpid(), signal.SIGKILL),
            "scan.ply: cannot be read; the reading process crashed",
        ),
        (lambda path, columns: bytearray(1 << 60), "scan.ply: needs more memory than is available"),
        (lambda path, columns: (_ for _ in ()).throw(ImportError("needs laspy")), "^needs laspy"),
    ],
    ids=["killed", "memory", "library"],
)
def test_what_a_file_does_to_its_reader_is_an_error_of_the_file(reader, message, tmp_path, monkeypatch):
    (tmp_path / "scan.ply").touch()
    monkeypatch.setattr(isolated_reading, "read_point_cloud", reader)
    # Forked from this process, which has imported everything.
    monkeypatch.setattr(isolated_reading, "_context", lambda: multiprocessing.get_context("fork"))
    with pytest.raises(PointCloudFileError, match=message):
        uploads.read_upload(tmp_path / "scan.ply")
    assert not multiprocessing.active_children()
