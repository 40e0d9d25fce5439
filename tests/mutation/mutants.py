"""Find places in the sources that can be changed, and draw a reproducible sample of changes."""

from __future__ import annotations

import ast
import hashlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("modeling", "conversions", "hf_any3d")

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
# Operators whose operands change the result when they are swapped.
_ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)
# Those of `isinstance` raise an error at once, which says nothing about the tests; the others mean the same swapped.
_UNORDERED = ("isinstance", "issubclass", "contextlib.suppress", "suppress", "max", "min")
_AXES = ("dim", "axis", "start_dim", "end_dim")
# What only words an error, a warning or a log line, or draws a picture, is not worth a test of its own.
_REPORTING = ("warn", "warning", "warning_once", "info", "debug", "error", "register", "field", "typer.Option")
_REPORTING += ("load_libraries", "set_verbosity_error", "disable_progress_bar", "disable_progress_bars", "tqdm")
_REPORTING += ("bar.update", "bar.set_postfix")
_CANVASES = ("axes", "figure", "panel", "panels", "gr")
# Where there is one device, leaving one out changes nothing; the others change only the time or memory of a call, and
# what zip is strict about never happens.
_UNSEEN = ("device", "encoding", "inplace", "non_blocking", "pin_memory", "num_warps", "num_stages", "strict")
# One more is much for a number below it, which may be an axis or an index, and next to nothing for one above it.
_SMALL = 8


@dataclass(frozen=True)
class Mutant:
    """One change of one source file."""

    path: str  # relative to the root of the checkout
    function: str  # qualified name; "" for code of the module or a class body
    line: int
    kind: str  # which operator made it
    start: int  # offsets of the replaced text in the file
    end: int
    text: str  # what replaces it
    before: str
    occurrence: int = 1  # number among equal changes of the function

    @property
    def name(self) -> str:
        """A name that stays the same while other parts of the file change."""
        number = f" (number {self.occurrence})" if self.occurrence > 1 else ""
        return f"{self.path}::{self.function or '<module>'}: {self.before} -> {self.text}{number}"

    def apply(self, source: str) -> str:
        """The source of the file with the change in it."""
        return source[: self.start] + self.text + source[self.end :]


def source_files(root: Path = ROOT) -> list[Path]:
    """All source files that are mutated; links inside `hf_any3d` to folders of the root are not followed."""
    return sorted(
        Path(folder, name)
        for top in FOLDERS
        for folder, _, names in os.walk(root / top)
        for name in names
        if name.endswith(".py")
    )


def package_of(path: str) -> str:
    """The package that a file counts for: two levels of folders, such as `modeling/act` or `hf_any3d/cli`."""
    folders = path.split("/")[:-1]
    return "/".join(folders[:2])


def find_mutants(path: Path, root: Path = ROOT) -> list[Mutant]:
    """All changes of one file that compile, in the order of the file."""
    return [mutant for mutant in _places(path, root) if _compiles(mutant, root)]


def draw(count: int, seed: int, root: Path = ROOT) -> list[Mutant]:
    """Draw changes of all sources, at most one a line.

    The order follows from the names of the changes, so that the sample stays nearly the same when sources change.
    """

    def order(mutant: Mutant) -> bytes:
        return hashlib.sha256(f"{seed} {mutant.name}".encode()).digest()

    chosen: dict[tuple[str, int], Mutant] = {}
    for mutant in sorted((place for path in source_files(root) for place in _places(path, root)), key=order):
        if len(chosen) == count:
            break
        if (mutant.path, mutant.line) not in chosen and _compiles(mutant, root):
            chosen[mutant.path, mutant.line] = mutant
    return list(chosen.values())


def _places(path: Path, root: Path) -> list[Mutant]:
    source = path.read_text(encoding="utf-8")
    finder = _Finder(path.relative_to(root).as_posix(), source)
    finder.visit(ast.parse(source))
    counts: Counter[str] = Counter()
    numbered = []
    for mutant in finder.found:
        counts[mutant.name] += 1
        numbered.append(replace(mutant, occurrence=counts[mutant.name]))
    return numbered


def _compiles(mutant: Mutant, root: Path) -> bool:
    try:
        ast.parse(mutant.apply((root / mutant.path).read_text(encoding="utf-8")))
    except SyntaxError:
        return False
    return True


class _Finder(ast.NodeVisitor):
    """Collects the changes of a file."""

    def __init__(self, path: str, source: str):
        self.path, self.source = path, source
        # Columns of the syntax tree count bytes.
        self.lines = source.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.scope: list[str] = []
        self.depth = 0  # of functions around a node
        self.found: list[Mutant] = []

    def _offset(self, line: int, column: int) -> int:
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def _add(self, node: ast.AST, kind: str, new: ast.AST | str) -> None:
        text = new if isinstance(new, str) else f"({ast.unparse(new)})"
        start = self._offset(node.lineno, node.col_offset)
        end = self._offset(node.end_lineno, node.end_col_offset)
        function = ".".join(self.scope) if self.depth else ""
        before = " ".join(self.source[start:end].split())
        self.found.append(Mutant(self.path, function, node.lineno, kind, start, end, text, before))

    # Scopes. Annotations, decorators and docstrings are left alone.

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if node.name == "__repr__":
            return
        self.scope.append(node.name)
        self.depth += 1
        for default in (*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)):
            self.visit(default)
        self._visit_body(node.body)
        self.depth -= 1
        self.scope.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = _visit_function

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.scope.append(node.name)
        self._visit_body(node.body)
        self.scope.pop()

    def visit_Module(self, node: ast.Module) -> None:
        self._visit_body(node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_Import(self, node: ast.Import) -> None:
        pass

    visit_ImportFrom = visit_Import

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def _visit_body(self, body: list[ast.stmt]) -> None:
        for number, statement in enumerate(body):
            is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if is_docstring and (number == 0 or self.depth == 0):
                continue
            self.visit(statement)

    # Statements.

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and self.depth and not _is_shown(node.value):
            self._add(node, "drop statement", "pass")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if self.depth and all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets):
            self._add(node, "drop statement", "pass")
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add(node, "drop statement", "pass")
        self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add(node, "drop raise", "pass")

    def visit_Return(self, node: ast.Return) -> None:
        value = node.value.value if isinstance(node.value, ast.Constant) else ...
        if node.value is not None and value is not None:
            # None is as good as False wherever it is asked for its truth; True in its place is another change.
            if value is not False:
                self._add(node, "return None", "return None")
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            return
        self._add(node.test, "negate condition", ast.UnaryOp(ast.Not(), node.test))
        self.visit(node.test)
        self._visit_body(node.body)
        self._visit_body(node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._add(node.test, "negate condition", ast.UnaryOp(ast.Not(), node.test))
        self.generic_visit(node)

    # Expressions.

    def visit_Compare(self, node: ast.Compare) -> None:
        other = _COMPARISONS[type(node.ops[0])]()
        self._add(node, "comparison", ast.Compare(node.left, [other, *node.ops[1:]], node.comparators))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        other = _ARITHMETIC.get(type(node.op))
        if other is not None and not (_is_text(node.left) or _is_text(node.right)):
            self._add(node, "arithmetic", ast.BinOp(node.left, other(), node.right))
        if isinstance(node.op, _ORDERED) and not _is_text(node.left):
            self._add(node, "swap operands", ast.BinOp(node.right, node.op, node.left))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self._add(node, "and/or", ast.BoolOp(other, node.values))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub)):
            self._add(node, "drop sign", node.operand)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._add(node, "constant", repr(not value))
        elif isinstance(value, (int, float)):
            self._add(node, "constant", repr(value + 1 if value < _SMALL else 2 * value))

    def visit_Call(self, node: ast.Call) -> None:
        if _is_shown(node):
            return
        for keyword in node.keywords:
            if keyword.arg not in (None, *_UNSEEN) and self.depth and not _is_prose(keyword.value):
                kept = [other for other in node.keywords if other is not keyword]
                self._add(node, f"drop {keyword.arg}=", ast.Call(node.func, node.args, kept))
                self._turn_axis(keyword)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if method == "detach" and not node.args:
            self._add(node, "drop detach", node.func.value)
        if method in ("transpose", "movedim", "permute") and self.depth:
            self._add(node, "drop transpose", node.func.value)
        swaps = ast.unparse(node.func) not in _UNORDERED
        names = {argument.id for argument in node.args if isinstance(argument, ast.Name)}
        if swaps and len(node.args) == len(names) == 2:
            self._add(node, "swap operands", ast.Call(node.func, node.args[::-1], node.keywords))
        for part in (node.func, *node.args, *(keyword for keyword in node.keywords if keyword.arg not in _UNSEEN)):
            self.visit(part)

    def visit_Dict(self, node: ast.Dict) -> None:
        if self.depth:
            for number, key in enumerate(node.keys):
                if key is not None and not _is_prose(node.values[number]):
                    keys, values = list(node.keys), list(node.values)
                    del keys[number], values[number]
                    self._add(node, f"drop key {ast.unparse(key)}", ast.Dict(keys, values))
        self.generic_visit(node)

    def _turn_axis(self, keyword: ast.keyword) -> None:
        try:
            axis = ast.literal_eval(keyword.value) if keyword.arg in _AXES else None
        except ValueError:
            return
        if isinstance(axis, int):
            # The neighboring axis: from the front where it is counted from the front.
            self._add(keyword.value, "wrong axis", repr(axis - 1 if axis else 1))


def _is_shown(call: ast.Call) -> bool:
    """Whether a call only reports or draws."""
    name = ast.unparse(call.func)
    return not {name, name.rpartition(".")[2]}.isdisjoint(_REPORTING) or name.partition(".")[0] in _CANVASES


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_prose(node: ast.AST) -> bool:
    """Whether a node is a text of several words, which people read."""
    parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return _is_text(node) and any(isinstance(part, str) and " " in part.strip() for part in parts)
