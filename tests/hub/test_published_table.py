"""What is published where: every file with its sizes, parts and options, and which licenses forbid commercial use."""

import pytest

from hf_any3d.hub.licenses import ACCEPT, check_license, show_license
from hf_any3d.hub.published_table import PUBLISHED, find_published, is_published
from hf_any3d.modeling.records import System
from tests.errors import raises


@pytest.mark.parametrize(
    ("name", "size", "found"),
    [
        ("BAAI/Uni3D:base", None, ("BAAI/Uni3D", "base")),
        ("BAAI/Uni3D", "base", ("BAAI/Uni3D", "base")),
        ("BAAI/Uni3D:base", "base", ("BAAI/Uni3D", "base")),
        ("ziqima/find3d-checkpt0", None, ("ziqima/find3d-checkpt0", None)),
        ("BAAI/Uni3D:base", "tiny", "^BAAI/Uni3D:base: size='tiny' is given too; expected one size$"),
        (
            "Pointcept/Utonia",
            None,
            "^Pointcept/Utonia: no size is given; expected one of tiny, small, base, scannet, as size=… or ",
        ),
        (
            "Pointcept/Utonia:x",
            None,
            "Utonia: size='x'; expected one of tiny, small, base, scannet, .*: Pointcept/Utonia:tiny$",
        ),
        ("ziqima/find3d-checkpt0:x", None, "find3d-checkpt0: size='x'; the repository has a single checkpoint, leave"),
    ],
)
def test_a_size_is_in_the_name_or_beside_it(name, size, found):
    if isinstance(found, tuple):
        assert find_published(name, size) == (*found, PUBLISHED[found[0]])
        return
    with pytest.raises(ValueError, match=found):
        find_published(name, size)


def test_a_directory_of_the_same_name_is_no_published_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_published("BAAI/Uni3D") and is_published("BAAI/Uni3D:base") and is_published("BAAI/Uni3D:none")
    assert not is_published("BAAI/Uni3D2") and not is_published(None) and not is_published(tmp_path)
    (tmp_path / "BAAI" / "Uni3D").mkdir(parents=True)
    assert not is_published("BAAI/Uni3D") and is_published("BAAI/Uni3D:base")


TERMS = System("T", "convert", "Class", "MIT", "https://x", "NC-1", "its page", non_commercial=True)


def test_a_license_that_forbids_commercial_use_is_accepted_once(tmp_path, monkeypatch):
    wording = (
        r"^me/x: the weights are under NC-1 \(stated by its page\), which forbids commercial use; if yours is "
        rf"permitted, accept it once with open_published\(…, accept_license=True\), or set {ACCEPT}=me/x$"
    )
    monkeypatch.delenv(ACCEPT, raising=False)
    free = System("T", "convert", "Class", "MIT", "https://x", "MIT", "its page")
    check_license("me/x", free, tmp_path / "free", accept=False)
    for accepted in (None, "", "me/y, other"):
        if accepted is not None:
            monkeypatch.setenv(ACCEPT, accepted)
        with pytest.raises(ValueError, match=wording):
            check_license("me/x", TERMS, tmp_path, accept=False)
    for accepted in ("all", "me/x", "me/y, me/x"):
        monkeypatch.setenv(ACCEPT, accepted)
        check_license("me/x", TERMS, tmp_path, accept=False)
    assert not list(tmp_path.iterdir()), "what a variable accepts is not kept"
    monkeypatch.delenv(ACCEPT)
    check_license("me/x", TERMS, tmp_path, accept=True)
    check_license("me/x", TERMS, tmp_path, accept=False)
    changed = System("T", "convert", "Class", "MIT", "https://x", "NC-2", "its page", non_commercial=True)
    with raises(ValueError, naming="under NC-2"):
        check_license("me/x", changed, tmp_path, accept=False)


def test_licenses_are_shown_once_and_again_if_they_change(tmp_path, capsys):
    check_license("me/x", TERMS, tmp_path, accept=True)
    for _ in range(2):
        show_license("me/x", TERMS, tmp_path)
    text = "Weights: NC-1 (stated by its page); program: MIT. The license of the weights forbids commercial use."
    assert capsys.readouterr() == ("", f"me/x: {text}\n")
    free = System("T", "convert", "Class", "BSD", "https://x", "MIT", "its page")
    show_license("me/x", free, tmp_path)
    assert capsys.readouterr().err == "me/x: Weights: MIT (stated by its page); program: BSD.\n"
    check_license("me/x", TERMS, tmp_path, accept=False)
