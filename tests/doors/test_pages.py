"""All blocks of README and guides run from the installed wheel in an empty folder, and print what the pages show.

Commands of README and of the pages that it links to run once more in one folder, as a reader goes on from page to
page. The blocks of a page are one program. One that needs more than the package says so in its first line. Of those,
blocks with `# needs a network` run where the hub's stand-in has what they name, those with an extra where it is
installed. `docs/tools/snippets.py` has the rules, `walk.py` runs the blocks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from docs.tools.snippets import NEEDS, ROOT, Block, blocks, pages
from tests.doors.conftest import EXTRAS, Shell
from tests.doors.shown import same
from tests.release import named_models

# The first test waits for all pages.
pytestmark = pytest.mark.timeout(2000)
# Repositories that the hub's stand-in has; `me` is who pushes.
NAMED = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "facebook/dinov2-small",
    "OpenShape/openshape-pointbert-vitb32-rgb",
    "patchalign3d/patchalign3d-encoder",
    "YuanTang96/MiniGPT-3D",
    "me/",
)
_EXTRA = re.compile(r"pip install 'hf-any3d\[(\w+)\]'$")
PAGES = {name: found for name, text in pages().items() if (found := blocks(text))}
# Who reads these types their blocks, and compares all that comes, letter by letter.
TYPED = ("README.md", "docs/first_minute.md")
TOGETHER = "together"
"""Folder in which README and the pages that it links to run one after the other."""


def runs(block: Block) -> bool:
    """Return whether a block runs here."""
    if extra := _EXTRA.match(block.needs):
        return extra[1] in EXTRAS
    return not block.needs or (block.needs.startswith("a network") and any(name in block.text for name in NAMED))


def wants_an_extra(name: str) -> bool:
    return any(_EXTRA.match(block.needs) and runs(block) for block in PAGES[name])


def own_folder(name: str) -> str:
    """The folder in which a page runs that finds nothing there."""
    return name.replace("/", "_")


def blocks_together() -> dict[str, list[Block]]:
    """Blocks of README and of the pages that it links to, in their order, that a reader may type in one folder.

    Of README those of bash, of the others those that write examples, as what all of them want to write has one name.
    """
    linked = re.findall(r"\]\((docs/[\w/]+\.md)", pages()["README.md"])
    found = {}
    for name in dict.fromkeys(["README.md", *linked]):
        needed = "" if name == "README.md" else "hf-any3d data example"
        found[name] = [
            block
            for block in filter(runs, PAGES.get(name, ()))
            if block.language == "bash" and needed in block.text and "a network" not in block.needs
        ]
    return {name: chosen for name, chosen in found.items() if chosen}


def job_of(name: str, folder: str, found: Iterable[Block]) -> dict[str, Any]:
    """Blocks of a page as `walk.py` runs them in a folder."""
    facts = [(block, {"network": block.needs.startswith("a network"), "in_order": name in TYPED}) for block in found]
    return {"name": name, "folder": folder, "blocks": [asdict(block) | more for block, more in facts]}


@pytest.fixture(scope="module")
def walked(request, installed, installed_alone, tmp_path_factory) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What each block did, by its folder, page and line; of pages whose tests were asked for."""
    folder = tmp_path_factory.mktemp("pages")
    done = {}
    tests = [item for item in request.session.items if item.path == Path(__file__)]
    asked = {value for item in tests if hasattr(item, "callspec") for value in item.callspec.params.values()}
    with named_models(folder / "named") as address:
        for python, extras in ((installed_alone, False), (installed, True)):
            jobs = []
            for name in PAGES:
                if name in asked and wants_an_extra(name) == extras:
                    jobs.append(job_of(name, own_folder(name), filter(runs, PAGES[name])))
            if extras and TOGETHER in asked:
                jobs += [job_of(name, TOGETHER, found) for name, found in blocks_together().items()]
            if not jobs:
                continue
            job = {"folder": str(folder / python.parts[-3]), "hub": int(address.rpartition(":")[2]), "pages": jobs}
            shell = Shell(tmp_path_factory.mktemp("walk"), python, address)
            (shell.folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
            results = shell.folder / "results"
            command = f"python {Path(__file__).with_name('walk.py')} job.json {results}"
            caches = {"HF_HOME": str(shell.folder / "caches"), "HF_ANY3D_ACCEPT_LICENSE": "all"}
            print(shell(command, seconds=1000, OMP_NUM_THREADS="1", **caches).out)
            for line in results.read_text(encoding="utf-8").splitlines():
                result = json.loads(line)
                done[result["folder"], result["page"], result["line"]] = result
    return done


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, found in PAGES.items() if any(map(runs, found))])
def test_the_blocks_of_a_page_run_and_print_what_it_shows(name, walked):
    for block in filter(runs, PAGES[name]):
        place = f"{name}, line {block.line}"
        key = own_folder(name), name, block.line
        assert key in walked, f"{place}: the process ended before"
        result = walked[key]
        assert not result["error"], f"{place}: {result['error']}"
        if block.printed:
            texts = result["printed"], result["printed"] + result.get("remarks", "")
            is_exact = name in TYPED
            assert any(same(block.printed, text, is_exact) for text in texts), f"{place} printed\n{texts[1]}"
        lines = block.text.splitlines()
        for end, printed in result["statements"].items():
            shown = re.match(r"print\(.*\)  # (.+)$", lines[int(end) - 1])
            assert not shown or same(shown[1], printed), f"{place}: {shown[1]}, printed {printed}"


@pytest.mark.slow
@pytest.mark.parametrize("folder", [TOGETHER])
def test_blocks_of_readme_and_then_of_its_pages_run_in_one_folder(folder, walked):
    found = blocks_together()
    assert len(found) > 5
    for name, typed in found.items():
        for block in typed:
            place = f"{name}, line {block.line}, after README and the pages before it"
            assert (folder, name, block.line) in walked, f"{place}: the process ended before"
            assert not walked[folder, name, block.line]["error"], (
                f"{place}: {walked[folder, name, block.line]['error']}"
            )


def test_a_block_says_what_it_needs_in_the_words_that_the_pages_explain():
    explained = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    for need in NEEDS:
        assert f"`# needs {need}" in explained
    for name, found in PAGES.items():
        for block in found:
            assert not block.needs or block.needs.startswith(tuple(NEEDS)), f"{name}, line {block.line}"


def test_a_page_with_blocks_for_a_checkout_says_so_at_its_top():
    for name, found in PAGES.items():
        if any("a checkout" in block.needs for block in found):
            top = re.split(r"^## ", pages()[name], flags=re.MULTILINE)[0]
            assert name == "docs/install.md" or "install.md#from-a-checkout" in top, name


def test_a_block_that_names_a_repository_says_that_it_needs_a_network():
    for name, found in PAGES.items():
        for block in found:
            fetched = [repository for repository in NAMED[:-1] if repository in block.text]
            assert not fetched or block.needs, f"{name}, line {block.line}: {fetched}"


def test_most_blocks_run():
    """Blocks that need a checkout or files of the reader are told apart; they may not become the rule."""
    total = [block for found in PAGES.values() for block in found if block.language == "python"]
    assert sum(map(runs, total)) > 0.6 * len(total)


def test_the_readme_is_short_in_words_and_numbers():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    not_prose = r"^```.*?^```$|^    [^\n]*$|^\|[^\n]*$|^#[^\n]*$"
    text = re.sub(not_prose, "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)", r"\1", text)
    prose = re.sub(r"`[^`]*`", "code", text)
    assert len(re.findall(r"(?<![\w.])\d[\d,.]*", prose)) <= 20
    sentences = re.split(r"(?<=[.:!?;])\s+|\n\n", prose)
    assert [sentence for sentence in sentences if len(sentence.split()) > 25] == []
