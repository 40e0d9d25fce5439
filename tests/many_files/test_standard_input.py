"""Workers of a command read what comes on standard input."""

from tests.cli.conftest import run


def test_several_processes_get_standard_input(tmp_path):
    words = ("data", "convert", "-", "--output", tmp_path / "c", "--workers", 2)
    assert run(*words, stdin=b"1 2 3\n4 5 6\n").code == 0 and [*(tmp_path / "c").rglob("*.ply")]
