"""Links, navigation, commands, error messages and drawings of the pages are right."""

import ast
import configparser
import json
import re
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
import yaml

from docs.tools.snippets import ROOT
from hf_any3d.cli import app
from hf_any3d.registry import FORMATS
from hf_any3d.training.layouts import Layouts
from hf_any3d.training.request_builder import learning_of_extensions
from hf_any3d.training.tasks import Classification

PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINKED = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "examples" / "README.md",
    ROOT / "studies" / "README.md",
    *PAGES,
]
SHOWN_ELSEWHERE = ("examples/", "studies/", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")
NAVIGATION = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
COMMAND = re.compile(r"^(hf-any3d (?:.*\\\n)*.*)$", flags=re.MULTILINE)
MESSAGE = re.compile(r"`([^`]+)`")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub and MkDocs make them."""
    lines = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), flags=re.M)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line)).strip().lower() for line in lines]
    return {re.sub(r"[\s]+", "-", line) for line in plain}


def pages_below(entry) -> list[str]:
    """Return the pages of an entry of the navigation."""
    if isinstance(entry, str):
        return [entry]
    return [page for below in (entry.values() if isinstance(entry, dict) else entry) for page in pages_below(below)]


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        address, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", address):
            continue
        file = (page.parent / address).resolve() if address else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in headings(file)):
            broken.append(target)
    assert broken == []


def test_the_navigation_has_every_page_once():
    named = pages_below(NAVIGATION)
    assert len(named) == len(set(named))
    own = {page for page in named if not page.startswith(SHOWN_ELSEWHERE)}
    assert own == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES}
    for page in set(named) - own:
        assert (ROOT / page).exists() or (ROOT / page).with_suffix(".ipynb").exists(), page


def guides() -> list[str]:
    """Return newcomers' pages and guides, at their names in `docs`."""
    parts = {title: pages_below(below) for part in NAVIGATION for title, below in part.items()}
    return [page for page in parts["Start"] + parts["Guides"] if not page.startswith(SHOWN_ELSEWHERE)]


def test_the_list_of_guides_names_each():
    text = (ROOT / "docs" / "guides.md").read_text(encoding="utf-8")
    parts = {title: pages_below(below) for part in NAVIGATION for title, below in part.items()}
    listed = [name for name in parts["Guides"] if name != "guides.md" and not name.startswith(SHOWN_ELSEWHERE)]
    assert [name for name in listed if f"({name})" not in text] == []


@pytest.mark.parametrize("name", guides())
def test_the_first_screen_of_a_guide_is_read_at_once(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    introduction, first, *_ = [*re.split(r"^## ", text, flags=re.MULTILINE), ""]
    prose = re.sub(r"^```.*?^```$|^\|[^\n]*$|^#[^\n]*$", "", introduction + first, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)", r"\1", prose)[:2000]
    prose = re.sub(r"`[^`]*`", "code", prose)
    sentences = re.split(r"(?<=[.:!?;])\s+|\n\n", prose)
    assert [sentence for sentence in sentences if len(sentence.split()) > 30] == []


def test_the_page_on_containers_shows_the_dockerfile():
    lines = (ROOT / "examples" / "container" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    shown = "\n".join(lines[3:])  # the first three say how to build and run it
    assert f"```dockerfile\n{shown}\n```" in (ROOT / "docs" / "container.md").read_text(encoding="utf-8")


def options_of(command, words: list[str]) -> tuple[str, set[str]]:
    """Follow the words of a command line to its command; returns its name and its options."""
    name = command.name
    for word in words:
        below = getattr(command, "commands", {}).get(word)
        if below is None:
            break
        command, name = below, f"{name} {word}"
    if getattr(command, "commands", None) and command.name == "evaluate":  # its default
        is_of_files = any(Path(word).suffix[1:] in FORMATS for word in words if not word.startswith("-"))
        of_files = "numbers" if "--numbers" in words else "labels"
        command = command.commands[of_files if is_of_files else "classifier"]
    of_extensions = [kind for module in learning_of_extensions() for kind in module.ARGUMENTS]
    if command.name in ("train", "reproduce", "sweep"):  # the options of the training program may follow
        program = {
            f"--{entry.name}"
            for kind in (*Classification.argument_classes(), *Layouts.argument_classes(), *of_extensions)
            for entry in fields(kind)
        }
        return name, program | {option for parameter in command.params for option in parameter.opts}
    return name, {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.fixture(scope="module")
def main():
    """The program with all its commands, which take a moment to build."""
    return typer.main.get_command(app)


@pytest.mark.slow
def test_containers_start_the_service_with_options_that_exist(main):
    dockerfile = (ROOT / "examples" / "container" / "Dockerfile").read_text(encoding="utf-8")
    compose = yaml.safe_load((ROOT / "examples" / "container" / "compose.yaml").read_text(encoding="utf-8"))
    for words in (json.loads(dockerfile.rpartition("CMD ")[2]), compose["services"]["any3d"]["command"].split()):
        name, known = options_of(main, words)
        assert name.endswith("serve") and {word for word in words if word.startswith("--")} <= known


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=name_of)
def test_options_of_commands_exist(page, main):
    unknown = []
    for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S):
        for line in COMMAND.findall(block):
            words = line.replace("\\\n", " ").partition("  #")[0].split()
            name, known = options_of(main, words[1:])
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            unknown += [f"{name}: {option}" for option in given - known - {"--help", "--version"}]
    assert unknown == []


def test_the_page_on_installation_has_every_extra():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert [extra for extra in setup["options.extras_require"] if f"| `{extra}` |" not in page] == []


def messages_of_the_source() -> list[str]:
    """All texts of the package, with `…` in place of what is filled in."""
    found = []
    for folder in ("hf_any3d", "modeling", "conversions", "survey/hf_any3d_survey"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


@pytest.mark.slow
def test_messages_of_the_page_on_errors_exist():
    texts = "\n".join(messages_of_the_source())
    rows = re.findall(r"^\| (.+?) \| .+ \|$", (ROOT / "docs" / "error_messages.md").read_text(), flags=re.M)
    messages = [message for row in rows for message in MESSAGE.findall(row) if " " in message]
    others = ("KeyError", "Feature type", "Unrecognized model", "Unknown task")
    ours = [message for message in messages if not message.startswith(others)]
    assert len(ours) > 25
    pieces = {piece.strip(" ()") for message in ours for piece in message.split("…")}
    assert [piece for piece in pieces if len(piece) > 3 and piece not in texts] == []


@pytest.mark.parametrize("drawing", sorted((ROOT / "docs" / "drawings").glob("*.svg")), ids=lambda file: file.stem)
def test_drawings_are_small_follow_the_colors_of_a_page_and_are_used(drawing):
    root = ElementTree.fromstring(drawing.read_text(encoding="utf-8"))
    assert root.get("stroke") == "currentColor" and drawing.stat().st_size < 20_000
    assert any(f"drawings/{drawing.name})" in page.read_text(encoding="utf-8") for page in PAGES)


def test_what_every_model_is_asked_names_tests_that_there_are():
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| .* \| `(test_\w+\.py)::(test_\w+)` \|$", page, flags=re.M)
    assert len(named) > 30
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / "common" / file).read_text(encoding="utf-8"), name
