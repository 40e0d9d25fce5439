"""The cache of converted checkpoints: what counts as whole, which size a file has, and names of none."""

import pytest

from hf_any3d.published import open_published
from tests.errors import raises


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("me/other", ValueError, "me/other: not a published checkpoint; expected one of .*, or a file$"),
        ("me/other.pt", FileNotFoundError, "no file me/other.pt"),
        ("me/other.pth", FileNotFoundError, "no file"),
        ("me/other.bin", FileNotFoundError, "no file"),
        ("./me/other", FileNotFoundError, "no file"),
        ("/me/other", FileNotFoundError, "no file"),
        ("~/other", FileNotFoundError, "no file"),
        ("other", FileNotFoundError, "no file other"),
    ],
)
def test_names_of_no_checkpoint_are_files_or_repositories(name, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        open_published(name)


def test_a_file_has_no_revision(tmp_path):
    (tmp_path / "a.pt").touch()
    with raises(ValueError, naming="a.pt"):
        open_published(tmp_path / "a.pt", revision="v1")
