"""The source is built as docs/architecture.md says: layers without circles, one place that changes other libraries."""

import ast
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from hf_any3d import _PUBLIC
from tests.extensions import HAS_SURVEY

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FOLDERS = {"hf_any3d": "hf_any3d", "modeling": "hf_any3d.modeling", "conversions": "hf_any3d.conversions"}
# The table of fused operations imports them, and two of them ask it, when they run, which of their forms is right.
CIRCLE = {f"hf_any3d.modeling.kernels{name}" for name in ("", ".farthest_point_sample", ".knn")}


def sources(folders: Mapping[str, str]) -> dict[str, Path]:
    """Module name -> file, of everything that is installed."""
    found = {}
    for folder, package in folders.items():
        for file in (ROOT / folder).rglob("*.py"):
            if folder != "hf_any3d" or file.relative_to(ROOT).parts[1] not in ("modeling", "conversions"):
                path = file.relative_to(ROOT / folder).with_suffix("")
                found[".".join([package, *path.parts]).removesuffix(".__init__")] = file
    return found


SOURCES = sources(FOLDERS)
ALL = SOURCES | sources({"survey/hf_any3d_survey": "hf_any3d_survey"})


def package_of(module: str) -> str:
    """The package as the page names it: the first part after `hf_any3d`, two within `modeling` and for records."""
    _, *parts = module.split(".")
    return ".".join(parts[: 2 if parts[:1] == ["modeling"] or parts[1:] == ["records"] else 1])


@cache
def imports(file: Path) -> list[str]:
    """Names of our modules that a file imports, anywhere in it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("hf_any3d.")]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hf_any3d"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if node.module == "hf_any3d" and name not in ALL:
                    found.append(_PUBLIC.get(alias.name, "hf_any3d.version"))  # where a public name is defined
                else:
                    found.append(name if name in ALL else node.module)
    return found


def in_circles(edges: Mapping[str, set[str]]) -> set[str]:
    """Modules that import each other in a circle, or lie between two such circles."""
    left = set(edges)
    while True:
        imported = set().union(*(edges[module] & left for module in left))
        inside = {module for module in left & imported if edges[module] & left}
        if inside == left:
            return left
        left = inside


def layers(page: str) -> dict[str, int]:
    """Package -> row of the table in the section "Packages"."""
    rows = page.partition("## Packages")[2].partition("## ")[0].splitlines()
    cells = [row.split("|")[1] for row in rows if row.startswith("| `")]
    return {package: number for number, cell in enumerate(cells) for package in re.findall(r"`([\w.]+)`", cell)}


def upward(edges: dict[tuple[str, str], list[str]], order: dict[str, int]) -> list[str]:
    """Imports between packages that do not lead to an earlier row."""
    found = []
    for (importer, imported), files in sorted(edges.items()):
        absent = [package for package in (importer, imported) if package not in order]
        if absent:
            found.append(f"the table in docs/architecture.md lacks {absent[0]}: add it to the row of its kind")
        elif order[imported] >= order[importer]:
            found.append(f"{importer} imports {imported}: {', '.join(sorted(files))}")
    return found


@pytest.mark.slow
def test_packages_import_only_those_above_them_in_the_table():
    order, edges = layers(PAGE), defaultdict(list)
    for module, file in SOURCES.items():
        for name in imports(file):
            importer, imported = package_of(module), package_of(name)
            if importer and imported and importer != imported:
                edges[importer, imported].append(file.relative_to(ROOT).as_posix())
    assert len(edges) > 50
    assert upward(edges, order) == []


@pytest.mark.slow
def test_no_file_imports_one_that_imports_it():
    # Imports inside of functions and those of types count, too.
    edges = {module: set(imports(file)) - {module} for module, file in ALL.items()}
    circles = in_circles(edges)
    arrows = [f"{module} -> {', '.join(sorted(edges[module] & circles))}" for module in sorted(circles - CIRCLE)]
    assert circles == CIRCLE, "; ".join(arrows)


def test_a_circle_of_files_is_found():
    circle = {"first": {"second"}, "second": {"third"}, "third": {"first", "leaf"}}
    around = {"leaf": set(), "root": {"first", "leaf"}, "alone": {"elsewhere"}}
    assert in_circles(circle | around) == set(circle) and in_circles(around) == set()


def test_models_know_neither_cards_nor_the_hub():
    # Of this package they import themselves alone; `modeling.hooks` is where the package around them takes part.
    files = {module: file for module, file in SOURCES.items() if module.startswith("hf_any3d.modeling")}
    imported = {name for file in files.values() for name in imports(file)}
    assert {name for name in imported if not name.startswith("hf_any3d.modeling")} == set()
    for module, file in files.items():
        source = file.read_text(encoding="utf-8")
        names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        assert "huggingface_hub" not in source and "PUBLISHED" not in names, module
        assert not {name for name in names if re.search(r"(^|_)card(_|$)|Card", name)}, module
    users = [module for module, file in SOURCES.items() if "set_hooks(" in file.read_text(encoding="utf-8")]
    assert sorted(users) == ["hf_any3d.integration.registration", "hf_any3d.modeling.hooks"]


def test_a_public_name_counts_as_an_import_of_its_module(tmp_path):
    file = tmp_path / "file.py"
    lines = ["from hf_any3d import Any2PointConfig, open_published", "from hf_any3d.integration import auto"]
    file.write_text("\n".join([*lines, "import hf_any3d.data.feature"]))
    expected = [
        "hf_any3d.modeling.any2point",
        "hf_any3d.published",
        "hf_any3d.integration.auto",
        "hf_any3d.data.feature",
    ]
    assert list(imports(file)) == expected


def test_the_table_names_every_package_and_no_other():
    named, there = set(layers(PAGE)), {package_of(module) for module in SOURCES} - {"", "modeling"}
    assert not there - named, f"the table in docs/architecture.md lacks {sorted(there - named)}"
    assert not named - there, f"the table in docs/architecture.md names {sorted(named - there)}, which are no packages"


def test_an_import_to_a_later_row_is_found():
    order = {"low": 0, "high": 1, "beside": 1}
    assert upward({("high", "low"): ["a.py"]}, order) == []
    # A new model that is not in the table yet, as the skeleton leaves it.
    assert "docs/architecture.md lacks modeling.new" in upward({("modeling.new", "low"): ["a.py"]}, order)[0]
    assert upward({("low", "high"): ["a.py"]}, order) == ["low imports high: a.py"]
    assert upward({("high", "beside"): ["a.py"]}, order) == ["high imports beside: a.py"]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w./-]+/[\w./*-]*)`", PAGE))))
def test_paths_that_the_page_names_exist(path):
    if path.startswith("survey/") and not HAS_SURVEY:
        pytest.skip("survey/ is not here")
    assert list(ROOT.glob(path.rstrip("/"))), path


def is_setattr(function):
    """Whether a call is one of `setattr` or `type.__setattr__`."""
    if isinstance(function, ast.Attribute):
        return function.attr == "__setattr__" and ast.unparse(function) == "type.__setattr__"
    return isinstance(function, ast.Name) and function.id == "setattr"


def changed_in(path):
    """Targets of assignments in a file that are attributes or entries of something imported from other libraries."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    foreign = {
        (name.asname or name.name).partition(".")[0]
        for node in imports
        for name in node.names
        if (getattr(node, "module", None) or name.name).partition(".")[0]
        in ("datasets", "huggingface_hub", "peft", "torch", "transformers")
    }
    for node in ast.walk(tree) if foreign else ():
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.Call) and is_setattr(node.func):
            targets = [node.args[0]]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changes = node.func.attr in ("update", "append", "setdefault", "__setitem__", "insert")
            targets = [node.func.value] if changes else []
        for target in targets:
            root = target
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            if not isinstance(root, ast.Name) or root.id not in foreign:
                continue
            if root is not target or isinstance(node, ast.Call):
                yield ast.unparse(target)


def test_other_libraries_are_changed_in_one_place():
    found = {}
    for folder in ("hf_any3d", "modeling", "conversions"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if changed := sorted(set(changed_in(path))):
                found[path.relative_to(ROOT).as_posix()] = changed
    methods = found.pop("hf_any3d/tuners/tuners_utils.py")
    assert {text.partition(".")[0] for text in methods} == {"PeftType"}
    assert found == {
        "hf_any3d/integration/auto_peft_patches.py": ["TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"],
        "hf_any3d/integration/patches.py": ["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"],
    }
