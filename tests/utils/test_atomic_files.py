"""Files are written completely or not at all, without leftovers."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_any3d.utils.atomic_files import (
    atomic_write,
    check_outputs,
    claim,
    new_directory,
    remove_temporaries,
    temporary_folder,
    temporary_path,
    usual_mode,
    write_text,
)
from tests.errors import raises

ROOT = Path(__file__).resolve().parents[2]


def names_below(folder):
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


def test_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = write_text(tmp_path / "report.txt", "old")
    with atomic_write(path) as unfinished:
        unfinished.write_text("ne")
        assert path.read_text() == "old"
        unfinished.write_text("new")
    assert path.read_text() == "new" and names_below(tmp_path) == ["report.txt"]


def test_after_an_error_nothing_half_written_stays(tmp_path):
    path = write_text(tmp_path / "report.txt", "old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as unfinished:
        unfinished.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names_below(tmp_path) == ["report.txt"]


def test_folder_in_the_place_of_the_file_is_refused_and_kept(tmp_path):
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        write_text(tmp_path, "text")
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.*"))


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    elsewhere = write_text(tmp_path / "elsewhere.txt", "mine")
    (tmp_path / "report.txt").symlink_to(elsewhere)
    path = write_text(tmp_path / "report.txt", "new")
    assert not path.is_symlink() and path.read_text() == "new" and elsewhere.read_text() == "mine"


def test_a_disk_that_is_full_is_an_error_that_names_the_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with raises(OSError, naming="report.txt"):
            write_text(tmp_path / "report.txt", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names_below(tmp_path) == []


def killed_while(code, by=signal.SIGKILL):
    """Run code in a process that is killed at its signal; return its number."""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"here\n"
    child.send_signal(by)
    child.wait()
    child.stdout.close()
    return child.pid


OPEN = "import importlib.util as u, sys, time; s = u.spec_from_file_location('w', 'hf_any3d/utils/atomic_files.py'); "
OPEN += "w = u.module_from_spec(s); sys.modules['w'] = w; s.loader.exec_module(w); "
WAIT = "print('here', flush=True); time.sleep(60)"


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path):
    path = tmp_path / "report.txt"
    killed = killed_while(f"{OPEN}c = w.atomic_write({str(path)!r}); f = c.__enter__(); f.write_text('ha'); {WAIT}")
    left = temporary_path(path).name.replace(str(os.getpid()), str(killed))
    others = temporary_path(path).with_name(temporary_path(path).name.replace(str(os.getpid()), str(os.getppid())))
    others.write_text("half")
    assert names_below(tmp_path) == sorted([left, others.name])
    write_text(path, "whole")
    assert names_below(tmp_path) == sorted([others.name, "report.txt"])


def test_a_second_writer_is_told_and_a_killed_one_keeps_nobody_out(tmp_path):
    lock = tmp_path / "out" / "_lock"
    code = f"{OPEN}c = w.claim({str(lock)!r}, 'out'); {WAIT}"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"here\n"
    with pytest.raises(BlockingIOError, match=f"out: process {child.pid} on .* is writing there; wait"):
        claim(lock, "out")
    child.kill()
    child.wait()
    child.stdout.close()
    with claim(lock, "out") as first, claim(lock, "out") as again:
        assert first is again and lock.read_text().startswith(f"process {os.getpid()} on ")
    assert names_below(tmp_path) == []


def test_a_lock_file_that_its_holder_removes_meanwhile_is_claimed_anew(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    lock, lockf, calls = tmp_path / "_lock", fcntl.lockf, []

    def locked_late(file, *flags):
        # Between opening and locking, another process ends, which had the lock.
        if not calls:
            lock.unlink()
        calls.append(file)
        lockf(file, *flags)

    monkeypatch.setattr(fcntl, "lockf", locked_late)
    with claim(lock, "out"):
        assert len(calls) == 2 and lock.read_text().startswith(f"process {os.getpid()} on ")
    assert names_below(tmp_path) == []


def test_systems_without_posix_locks_lock_through_filelock(tmp_path):
    lock = tmp_path / "_lock"
    code = f"{OPEN}w.fcntl = None; c = w.claim({str(lock)!r}, 'out'); "
    child = subprocess.Popen([sys.executable, "-c", code + WAIT], cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"here\n"
    second = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "out: another process is writing there" in second.stderr
    child.kill()
    child.wait()
    child.stdout.close()
    third = subprocess.run([sys.executable, "-c", code + "c.release()"], cwd=ROOT, capture_output=True, text=True)
    assert third.returncode == 0, third.stderr


def test_temporary_files_are_removed_and_all_others_stay(tmp_path):
    kept = [tmp_path / name for name in ("a[1]", ".other", "a.tmp", ".tmp62", "tmp623dR6")]
    left = [temporary_path(tmp_path / name) for name in ("a[1]", "b*", "測" * 85)]
    unfinished = tmp_path / ".tmp623dR6"  # of safetensors, which names no file in it
    for path in (*kept, *left[1:], unfinished):
        path.touch()
    (tmp_path / ".tmp-own-2").mkdir()
    left[0].mkdir()
    (left[0] / "inner").touch()
    remove_temporaries(tmp_path)
    assert not any(path.exists() for path in (*left, unfinished)) and (tmp_path / ".tmp-own-2").exists()
    assert all(path.exists() for path in kept)


def test_folders_of_temporary_files_go_with_the_next_one_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}; {OPEN}c = w.temporary_folder(); "
    killed_while(f"{code}f = c.__enter__(); (f / 'edge').touch(); {WAIT}")
    assert len(list(tmp_path.iterdir())) == 1
    with temporary_folder() as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_folders_of_temporary_files_go_when_a_process_is_terminated(tmp_path):
    code = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}; {OPEN}"
    killed_while(f"{code}\nwith w.temporary_folder() as f:\n (f / 'edge').touch(); {WAIT}", signal.SIGTERM)
    assert list(tmp_path.iterdir()) == []


def test_libraries_that_end_without_an_error_or_with_one_of_their_own_are_told_as_a_full_disk(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with raises(OSError, naming="a.bin"), atomic_write(tmp_path / "a.bin") as unfinished:
            raise RuntimeError(f"stream of {unfinished} failed")
        with raises(OSError, naming="a.bin"), atomic_write(tmp_path / "a.bin"):
            raise RuntimeError("stream failed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(RuntimeError, match="no disk"), atomic_write(tmp_path / "a.bin"):
        raise RuntimeError("no disk")


def test_outputs_are_checked_before_anything_is_written(tmp_path):
    read = write_text(tmp_path / "in.txt", "mine")
    (tmp_path / "link.txt").symlink_to(read)
    (tmp_path / "folder").symlink_to(tmp_path)
    for outputs, reason in (
        ({"--a": tmp_path / "new" / "x", "--b": tmp_path / "folder" / "new" / "x"}, "--a and --b are both"),
        ({"--a": read}, "--a: .*in.txt is an input file"),
        ({"--a": tmp_path / "link.txt"}, "link.txt is an input file"),
        ({"--a": read / "x"}, "Not a directory"),
        ({"--a": tmp_path}, "is a folder"),
        ({"--a": "/dev/null"}, "/dev/null is no regular file"),
    ):
        with pytest.raises((OSError, ValueError), match=reason):
            check_outputs(outputs, [read])
    check_outputs({"--a": tmp_path / "new" / "a", "--b": tmp_path / "new" / "b"}, [read, tmp_path / "gone"])
    assert names_below(tmp_path) == ["in.txt", "link.txt"] and not (tmp_path / "new").exists()


def test_what_one_process_writes_twice_at_a_time_is_refused(tmp_path):
    with atomic_write(tmp_path / "a"), raises(FileExistsError, naming="a"), atomic_write(tmp_path / "a"):
        pass
    assert names_below(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_weights_have_the_mode_of_other_new_files_and_earlier_ones_keep_theirs(mask, tmp_path):
    tensors = {"weight": np.zeros(2)}
    (tmp_path / "part").mkdir()
    save_file(tensors, tmp_path / "earlier.safetensors")
    (tmp_path / "earlier.safetensors").chmod(0o640)
    before = os.umask(mask)
    try:
        with usual_mode(tmp_path):
            save_file(tensors, tmp_path / "model.safetensors")
            save_file(tensors, tmp_path / "part" / "model.safetensors")
        with new_directory(tmp_path / "new") as folder:
            save_file(tensors, folder / "model.safetensors")
        with atomic_write(tmp_path / "bank.safetensors") as unfinished:
            save_file(tensors, unfinished)
    finally:
        os.umask(before)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.safetensors")}
    assert modes.pop("earlier.safetensors") == 0o640
    assert len(modes) == 4 and set(modes.values()) == {0o666 & ~mask}
