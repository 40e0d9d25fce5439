"""Rules that the whole source keeps: who may import whom, nothing unpickled, no file too long, plain words."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FILE, LONGEST_MODEL = 800, 1000
_FOR_MODELS = {"torch", "transformers", "peft", "numpy", "scipy"}
# File by file: transformers needs safetensors anyway, and only two files look into files of weights; one compares
# weights, by a hash so fast that every save can afford it.
_EXCEPTIONS = {
    "modeling/any2point/starting_weights.py": {"safetensors"},
    "modeling/point_encoders/packaged_encoder.py": {"safetensors"},
    "modeling/pretrained_parts/loading.py": {"safetensors"},
    "modeling/pretrained_parts/tensors.py": {"xxhash"},
}


# Optional arguments that may stay unread: others call these functions with them, or they are part of another argument.
_UNREAD = {
    "modeling/kernels/guided_aggregation/pairs.py": {
        "pair_attention_fused(dropout)"
    },  # chosen only where there is none
    "modeling/point_transformer_v3/modeling_point_transformer_v3.py": {"forward(inverse)"},
    # Called by libraries.
    "hf_any3d/data/epochs.py": {"__get__(owner)"},
    "hf_any3d/utils/import_watcher.py": {"find_spec(target)"},
    "hf_any3d/model_card/saving.py": {"write_trainer_card(model_name)"},
    "hf_any3d/training/detection.py": {"evaluation_loop(prediction_loss_only)", "evaluation_loop(ignore_keys)"},
    "modeling/minigpt3d/modeling_minigpt3d.py": {"_from_parts(ignore_mismatched_sizes)"},
    "modeling/pretrained_parts/task_switch.py": {"set_adapter(inference_mode)"},
    "hf_any3d/data/tables/file_conversion.py": {"_read_batch(stamp)"},  # tells cached results apart
}

# Stems of spellings that are not American. Stored runs of the released programs have keys of their own.
_OTHER_SPELLING = re.compile(
    r"colour|centre[sd]?$|licenc|honour|favour|behaviour|neighbour|catalogue|labelled|labelling|modelled|"
    r"modelling|metres?$|(?:normal|initial|optim|recogn|synchron|serial|general|summar|minim|maxim|quant)is[aei]",
    re.IGNORECASE,
)
_STORED_KEYS = {
    *("features_with_colour", "features_without_colour", "point_labels_nearest_centred"),
    *("normalised_first_rows", "normalised_mean_abs", "normalised_max_norm"),
    *("metres", "text_metres"),
}


def other_spellings(text: str) -> set[str]:
    return {word for word in set(re.findall(r"\w+", text)) - _STORED_KEYS if _OTHER_SPELLING.search(word)}


def clause_docstrings(source: str) -> list[str]:
    """First lines of docstrings that begin like a question and are none."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    first = (text.partition("\n")[0] for text in texts if text)
    return [line for line in first if re.match(r"(What|Which|Where|When|Why|How|Whether)\b", line) and "?" not in line]


def unread_arguments(source: str) -> set[str]:
    """Optional arguments of functions that do more than raise, which no line of them reads."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = [
            part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        ]
        if len(body) < 2 and all(isinstance(part, (ast.Raise, ast.Pass)) for part in body):
            continue
        given = node.args.args[len(node.args.args) - len(node.args.defaults) :] + node.args.kwonlyargs
        read = {part.id for line in body for part in ast.walk(line) if isinstance(part, ast.Name)}
        unread = [one.arg for one in given if one.arg not in read and not one.arg.startswith("_")]
        found |= {f"{node.name}({name})" for name in unread if "locals" not in read}
    return found


def files_of(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def sources_of(*folders: str) -> Iterator[tuple[str, str]]:
    """Names of files and what is in them."""
    for file in files_of(*folders):
        yield relative(file), file.read_text(encoding="utf-8")


def imported_by(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def strangers(source: str, packages: set[str], own: tuple[str, ...]) -> list[str]:
    """Names that a file imports though they're neither of the standard library, of `packages` nor below `own`."""

    def is_allowed(name: str) -> bool:
        first = name.partition(".")[0]
        if first == "hf_any3d":
            return any(name == allowed or name.startswith(f"{allowed}.") for allowed in own)
        return first in packages or first in sys.stdlib_module_names

    return sorted({name for name in imported_by(ast.parse(source)) if not is_allowed(name)})


def unsafe_calls(source: str) -> list[str]:
    """Calls that would run code from a file, by line; ruff's S301, S302 and S506 find those of pickle and yaml."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called == "torch.load" and keywords.get("weights_only") != "True":
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if keywords.get("allow_pickle", "False") != "False":
            found.append(f"line {node.lineno}: allow_pickle={keywords['allow_pickle']}")
        if called in ("pickle.Unpickler", "joblib.load"):
            found.append(f"line {node.lineno}: {called}")
    return found


def test_models_import_only_the_base_and_themselves():
    for name, source in sources_of("modeling"):
        packages = _FOR_MODELS | _EXCEPTIONS.get(name, set())
        assert strangers(source, packages, ("hf_any3d.modeling",)) == [], name


@pytest.mark.slow
def test_nothing_is_unpickled():
    for name, source in sources_of("hf_any3d", "modeling", "conversions", "examples", "studies", "survey"):
        assert unsafe_calls(source) == [], name
        # Its class allows the names with which numpy writes arrays, and no others.
        assert "Unpickler" not in source or name == "hf_any3d/data/files/restricted_pickle.py", name


@pytest.mark.slow
def test_no_argument_is_swallowed():
    """A function that forgets to pass an argument on answers as if it was not given."""
    for name, source in sources_of("conversions", "hf_any3d", "modeling", "survey"):
        assert unread_arguments(source) == _UNREAD.get(name, set()), name


@pytest.mark.slow
def test_no_file_is_too_long_to_read():
    lengths = {
        relative(file): len(file.read_text(encoding="utf-8").splitlines())
        for file in files_of("hf_any3d", "modeling", "conversions", "examples", "studies", "survey", "tests")
    }
    # A model reads best as a whole, as in transformers.
    models = {name for name in lengths if name.startswith("modeling/") and "/modeling_" in name}
    too_long = {
        n: length for n, length in lengths.items() if length > (LONGEST_MODEL if n in models else LONGEST_FILE)
    }
    assert too_long == {}


def test_letters_of_shapes_are_in_the_legend_of_their_file():
    found = {}
    for file in sorted((ROOT / "modeling").glob("*/modeling_*.py")):
        _, opening, rest = file.read_text(encoding="utf-8").split('"""', 2)
        shapes = re.findall(r"# .*?\(([^()]*,[^()]*)\)", rest) + re.findall(r"\(([^()]*,[^()]*)\)", opening)
        letters = set(re.findall(r"\b[A-Z]\b", " ".join(shapes)))
        legend = re.findall(r"\b([A-Z]) [a-z]+", opening.partition("Shapes: ")[2])
        if letters - {*legend, "C"}:  # channels beside xyz
            found[file.name] = letters
    assert not found, f"the legend at the top, 'Shapes: B clouds, …', lacks letters: {found}"


def test_only_kernels_define_autograd_functions():
    for name, source in sources_of("modeling"):
        if not name.startswith("modeling/kernels/"):
            assert not re.search(r"autograd\.Function|torch\.library|ops\.aten", source), name
        assert "aten._" not in source, f"{name}: a private operator of torch"


def test_rules_see_what_they_forbid():
    swallowing = "def f(a, b=1, *, c, _d=2):\n    return a\ndef g(a=1):\n    raise OSError\ndef h(a=1):\n    return a"
    assert unread_arguments(swallowing) == {"f(b)", "f(c)"}
    assert strangers("import trimesh, json\nfrom torch import nn", _FOR_MODELS, ()) == ["trimesh"]
    assert strangers(
        "from hf_any3d.integration import auto\nimport hf_any3d.modeling.x", set(), ("hf_any3d.modeling",)
    ) == ["hf_any3d.integration.auto"]
    assert strangers("def f():\n    from hf_any3d.modelingx import y", set(), ("hf_any3d.modeling",)) != []
    for unsafe in ("torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)"):
        assert len(unsafe_calls(unsafe)) == 1
    assert unsafe_calls("torch.load(f, weights_only=True); np.load(f, allow_pickle=False)") == []


@pytest.mark.parametrize(
    "folder", ("conversions", "docs", "examples", "hf_any3d", "modeling", "studies", "survey", "tests")
)
def test_words_have_the_american_spelling(folder):
    files = [file for ending in ("*.py", "*.md") for file in (ROOT / folder).rglob(ending)]
    found = {relative(file): other_spellings(file.read_text(encoding="utf-8")) for file in files}
    assert {name: words for name, words in found.items() if words and name != "tests/test_house_rules.py"} == {}
    assert other_spellings("Centred colours of neighbours") == {"Centred", "colours", "neighbours"}


@pytest.mark.parametrize("folder", ("conversions", "examples", "hf_any3d", "modeling", "studies", "survey"))
def test_docstrings_open_with_a_noun_or_an_imperative(folder):
    # Ruff's D401 leaves out modules, classes and properties.
    clauses = {relative(file): clause_docstrings(file.read_text(encoding="utf-8")) for file in files_of(folder)}
    assert {name: found for name, found in clauses.items() if found} == {}
    assert clause_docstrings('"""Where files are."""\n\nclass A:\n    """What is this?"""') == ["Where files are."]
