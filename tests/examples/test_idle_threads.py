"""Programs that train let idle threads of torch sleep, which they must say before torch is loaded."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [folder for folder in ("examples", "studies", "survey/studies") if (ROOT / folder).is_dir()]


def parsed_modules() -> dict[str, ast.Module]:
    """Module name -> syntax tree, of everything in the folders of programs."""
    found = {}
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


MODULES = parsed_modules()


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_program(name: str) -> bool:
    guards = [node for node in MODULES[name].body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
    return bool(guards) or name.endswith(".__main__")


def trains(name: str) -> bool:
    """Whether a module differentiates or imports what trains, itself or in another module of these folders."""
    waiting, seen = [name], set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if any(isinstance(node, ast.Attribute) and node.attr == "backward" for node in ast.walk(MODULES[module])):
            return True
        for other in imported(ast.walk(MODULES[module])):
            if ".training." in other or other == "transformers.Trainer":
                return True
            waiting += [known for known in (other, other.rpartition(".")[0]) if known in MODULES]
    return False


def lets_threads_sleep(tree: ast.Module) -> bool:
    """Whether a module sets the variable before it imports anything that may load torch."""
    for node in tree.body:
        if ast.unparse(node) == "os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')":
            return True
        if any(name.partition(".")[0] not in sys.stdlib_module_names for name in imported(ast.walk(node))):
            return False
    return False


def run_before(name: str) -> list[str]:
    """Modules of these folders that run before a program's imports: its packages, unless it is started by its path."""
    *packages, _ = name.split(".")
    if name.startswith("examples.") and len(packages) == 1:
        return [name]
    return [".".join(packages[: count + 1]) for count in range(len(packages))] + [name]


def test_programs_that_train_let_idle_threads_sleep():
    programs = sorted(name for name in MODULES if is_program(name) and trains(name))
    assert {"examples.quickstart", "examples.run_layouts", "examples.shapes_chat.__main__"} <= {*programs}
    assert not {"examples.make_files", "examples.fetch_encoder"} & {*programs}
    awake = []
    for name in programs:
        modules = [MODULES[module] for module in run_before(name) if module in MODULES]
        if not any(map(lets_threads_sleep, modules)):
            awake.append(name)
    assert not awake, 'before other imports, os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")'


@pytest.mark.parametrize(
    ("source", "sleeps"),
    [
        ("import os\nos.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')\nimport torch\n", True),
        ("import os\nimport torch\nos.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')\n", False),
        ("import os\nif True:\n    import hf_any3d\nos.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')\n", False),
        ("import os\n", False),
    ],
)
def test_the_variable_counts_only_before_torch(source, sleeps):
    assert lets_threads_sleep(ast.parse(source)) is sleeps
