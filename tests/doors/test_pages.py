"""Blocks of the README and of the first guides, each in a process of its own, as people copy them."""

import re
import shutil

import pytest

from tests.first_walk import write_scans
from tests.release import ROOT, named_models

PAGES = ("README.md", "docs/first_minute.md", "docs/few_scans.md", "docs/classify.md")
_BLOCK = re.compile(
    r"(<!-- not run: [^>]+ -->\n+)?^```(python|bash)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?",
    flags=re.MULTILINE | re.DOTALL,
)
# What needs gigabytes, minutes or a checkout, or does not end; the other ways of training are in test_train.py.
_NOT_HERE = (
    "pip install",
    "--way",
    "hf-any3d serve",
    "hf-any3d demo",
    "SpatialLM",
    "python -m examples",
    "python -m tests",
)


def blocks():
    """Yield page, language, text and expected output of every block, in their order."""
    for page in PAGES:
        for skip, language, text, output in _BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
            if not skip and not any(words in text for words in _NOT_HERE):
                yield pytest.param(language, text, output, id=f"{page}: {text.splitlines()[-1][:60]}")


def plain(text):
    """Replace numbers, and join spaces."""
    return re.sub(r"\s+", " ", re.sub(r"\d(?:[\d,.]*\d)?(e-?\d+)?", "N", text)).strip()


@pytest.fixture(scope="module")
def reader(open_shell, tmp_path_factory):
    """The shell of a reader of the pages: example files, some scans, and a hub with small models."""
    with named_models(tmp_path_factory.mktemp("named") / "models") as address:
        shell = open_shell(address)
        for file in (ROOT / "examples" / "data").glob("*.ply"):
            shutil.copy(file, shell.folder)
        write_scans(shell.folder / "scans", count=2)
        write_scans(shell.folder / "more", count=3)
        yield shell


# In the order of the pages: a command may open what an earlier one saved.
@pytest.mark.parametrize("language, text, output", list(blocks()))
def test_a_block_runs_alone(language, text, output, reader):
    done = reader.run(text) if language == "python" else reader(f"set -e\n{text}")
    if output:
        assert plain(output) in plain(done.text)


def test_the_readme_is_short_in_words_and_numbers():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$|^    .*$|^\|.*$|^#.*$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)", r"\1", text)
    prose = re.sub(r"`[^`]*`", "code", text)
    assert len(re.findall(r"(?<![\w.])\d[\d,.]*", prose)) <= 20
    sentences = re.split(r"(?<=[.:!?;])\s+|\n\n", prose)
    assert [sentence for sentence in sentences if len(sentence.split()) > 25] == []
