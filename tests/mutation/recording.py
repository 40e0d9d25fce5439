"""Run the suite once and note which test enters which function of the mutated folders.

A plugin for pytest (`-p tests.mutation.recording`) and the command that uses it. The sources are instrumented while
they are imported: every function first adds its name to a set. That costs little beside the tests, and unlike a
tracer it works in code that torch compiles.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.mutants import FOLDERS, ROOT

_ENTERED: set[str] = set()
_DIRECTORY = "HF_ANY3D_RECORDING"
# Their tests run programs for minutes, or the tests themselves.
_TOOLS = tuple(f"tests/{name}" for name in ("fuzz", "faults", "studies", "test_mutation", "test_packaging"))
_PREFIXES = tuple(f"{ROOT / folder}{os.sep}" for folder in FOLDERS)


class _Instrument(ast.NodeTransformer):
    """Puts `__entered__(name)` at the start of every function."""

    def __init__(self, path: str):
        self.path, self.scope = path, []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.scope.append(node.name)
        self.generic_visit(node)
        self.scope.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.scope.append(node.name)
        self.generic_visit(node)
        name = f"{self.path}::{'.'.join(self.scope)}"
        self.scope.pop()
        first = 1 if ast.get_docstring(node, clean=False) is not None else 0
        mark = ast.Expr(ast.Call(ast.Name("__entered__", ast.Load()), [ast.Constant(name)], []))
        node.body.insert(first, ast.copy_location(mark, node))
        return ast.fix_missing_locations(node)

    visit_AsyncFunctionDef = visit_FunctionDef


def _instrumented(original: Any) -> Any:
    def get_code(self: SourceFileLoader, fullname: str) -> Any:
        path = self.get_filename(fullname)
        name = os.path.realpath(path)
        if not name.startswith(_PREFIXES):
            return original(self, fullname)
        # Bytecode is neither read nor kept: programs that tests start would find it, and do not know `__entered__`.
        tree = _Instrument(Path(name).relative_to(ROOT).as_posix()).visit(ast.parse(self.get_data(path)))
        return compile(tree, path, "exec", dont_inherit=True)

    return get_code


if _DIRECTORY in os.environ:
    builtins.__entered__ = _ENTERED.add
    SourceFileLoader.get_code = _instrumented(SourceFileLoader.get_code)


def pytest_configure(config: pytest.Config) -> None:
    """Open the file that this process writes to."""
    if _DIRECTORY in os.environ:
        config.pluginmanager.register(_Recorder(Path(os.environ[_DIRECTORY])))


class _Recorder:
    """Writes a line for each test: its name, seconds, whether it passed, and the functions that were entered.

    The seconds are those of a processor, of this process and of those that it waited for.
    """

    def __init__(self, directory: Path):
        self.file = (directory / f"{os.getpid()}.jsonl").open("a", encoding="utf-8")
        self.begun, self.passed = 0.0, True

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.begun, self.passed = _processor_seconds(), True
        _ENTERED.clear()
        yield
        row = {
            "test": item.nodeid,
            "seconds": round(_processor_seconds() - self.begun, 3),
            "passed": self.passed,
            "entered": sorted(_ENTERED),
        }
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed = self.passed and report.outcome == "passed"


def _processor_seconds() -> float:
    return sum(os.times()[:4])


def record(output: Path, workers: int) -> None:
    """Run all tests but those of tools in some processes, and write a line for each to a file."""
    found = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py"))
    arguments = [file for file in found if not file.startswith(_TOOLS)]
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        rows.mkdir()
        environment = {**os.environ, _DIRECTORY: str(rows)}
        command = [sys.executable, "-m", "pytest", "-p", "tests.mutation.recording", "-p", "no:cacheprovider"]
        command += ["-n", str(workers), "--dist", "loadfile", "--durations=0", "--durations-min=1000", *arguments]
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        lines = [line for file in sorted(rows.iterdir()) for line in file.read_text(encoding="utf-8").splitlines()]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} tests recorded in {output}")
