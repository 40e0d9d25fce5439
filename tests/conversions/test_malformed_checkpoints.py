"""Checkpoints that were repacked, damaged or malformed, in every converter."""

import itertools
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import pytest
import torch

from hf_any3d.conversions.checkpoints import read_checkpoint
from hf_any3d.conversions.programs import convert_files
from hf_any3d.conversions.tensor_checks import check_finite
from tests.conversions.converters import CONVERTERS
from tests.errors import raises
from tests.turns import ALL_PAIRS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*depend on the other clouds of a batch:UserWarning"),
    pytest.mark.usefixtures("libraries_as_they_were"),
]


V = TypeVar("V")


def repacked(path, method=zipfile.ZIP_DEFLATED, change=lambda name, data: data):
    """Write the members of a checkpoint into a new zip, as `zip -r` or a file manager does."""
    other = path.with_name("repacked.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", method) as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))
    return other


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.manual_seed(0)
    state = {"a": torch.randn(40, 50), "b": torch.randn(30), "c": torch.arange(3), "d": torch.randn(2, 3).half()}
    torch.save({"model": state, "epoch": 3}, path)
    return path


def assert_same(read, path):
    expected = torch.load(path, weights_only=True)["model"]
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED], ids=["deflated", "stored"])
def test_repacked_checkpoints_are_read_with_their_own_numbers(saved, method):
    assert_same(read_checkpoint(repacked(saved, method)), saved)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED], ids=["deflated", "stored"])
def test_a_member_with_a_wrong_checksum_is_named(saved, method):
    path = repacked(saved, method)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("checkpoint/data/1")
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(member.filename) + member.compress_size // 2] ^= 1
    path.write_bytes(data)
    with raises(ValueError, naming="repacked.pth"):
        read_checkpoint(path)


def test_files_of_torchs_first_format_are_read(saved):
    state = torch.load(saved, weights_only=True)
    torch.save(state, saved, _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(saved), saved)


MISFITS = {
    # change of a tensor, message
    "sparse": (lambda tensor: tensor.to_sparse(), ""),
    "quantized": (lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8), ""),
    "complex": (lambda tensor: tensor.to(torch.complex64), "of another type"),
    "eight bits": (lambda tensor: tensor.to(torch.float8_e4m3fn), ""),
    "whole numbers": (lambda tensor: tensor.to(torch.int64), "of another type"),
    "NaN": (lambda tensor: torch.full_like(tensor, torch.nan), "NaN or infinite numbers in 1 tensors"),
    "infinite": (lambda tensor: torch.cat([tensor[:-1], tensor[-1:] / 0]), "NaN or infinite numbers in 1 tensors"),
    "too large": (lambda tensor: torch.full_like(tensor, 1e300, dtype=torch.float64), "NaN or infinite numbers in 1"),
    "one number": (lambda tensor: tensor.flatten()[0].clone(), ""),
    "nothing": (lambda tensor: tensor[:0], ""),
    "one row less": (lambda tensor: tensor[1:].clone(), ""),
    "flat": (lambda tensor: torch.cat([tensor.flatten(), tensor.flatten()]), ""),
}


# Of the kinds of files that one function converts, one.
TRIED = CONVERTERS if ALL_PAIRS else {converter.program: name for name, converter in CONVERTERS.items()}.values()


def by_turns_of(converter: str, values: Iterable[V], step: int) -> list[V]:
    """Return every `step`-th value, others for each converter; with HF_ANY3D_ALL_PAIRS=1 all of them."""
    values = list(values)
    return values if ALL_PAIRS else values[list(CONVERTERS).index(converter) % step :: step]


def test_the_largest_numbers_of_float32_are_finite(saved):
    bounds = torch.finfo(torch.float32)
    state = {"a": torch.tensor([bounds.min, bounds.max]), "b": torch.tensor([bounds.max]).double()}
    torch.save(state, saved)
    check_finite(read_checkpoint(saved))
    torch.save(state | {"b": torch.tensor([bounds.max]).double() * 1.001}, saved)
    with pytest.raises(ValueError, match="NaN or infinite numbers in 1 tensors: b"):
        check_finite(read_checkpoint(saved))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A directory for each converter with the other files that it needs."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            CONVERTERS[name].prepare(made[name])
        return made[name]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("converter", TRIED)
def test_every_converter_refuses_tensors_that_do_not_fit_or_are_not_finite(converter, folders, tmp_path):
    opened, others = CONVERTERS[converter], folders(converter)
    original = opened.content()
    state = original[opened.state]
    names = [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.ndim > 1]
    # A tensor that the converter keeps.
    kept = [name for name in names if not re.match(r"(module\.)?(t5|ln_vision|ACT_encoder\.lm_head)", name)]
    name = kept[len(kept) // 2]
    # Each converter gets another type or numbers that are not finite, and another shape.
    for kind, (change, message) in by_turns_of(converter, MISFITS.items(), 6):
        torch.save(original | {opened.state: state | {name: change(state[name])}}, tmp_path / "original.pth")
        with pytest.raises(ValueError, match=message) as caught:
            opened.convert(tmp_path / "original.pth", tmp_path / "out", others)
        text = str(caught.value)
        assert "\n" not in text and len(text) < 2000, kind
        assert name.removeprefix("module.") in text or kind not in ("NaN", "infinite", "too large"), text
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("converter", TRIED)
def test_a_refusal_names_the_file_whatever_is_wrong_with_a_tensor(converter, folders, tmp_path):
    opened, others, file = CONVERTERS[converter], folders(converter), tmp_path / "original.pth"
    original = opened.content()
    state, refused = original[opened.state], 0
    name = next((name for name in state if ".lora_A." in name), next(iter(state)))
    twice = f"module.module.{name.removeprefix('module.')}"
    kinds = ({name: torch.zeros(0)}, {name: torch.tensor(3.0)}, {twice: state[name], twice[7:]: state[name]})
    # A tensor twice is refused for each, the others only where the tensor is one that the converter keeps.
    for changed in kinds if ALL_PAIRS else (kinds[list(CONVERTERS).index(converter) % 2], kinds[2]):
        torch.save(original | {opened.state: state | changed}, file)
        try:
            opened.convert(file, tmp_path / "out", others)
        except ValueError as error:
            assert str(file) in str(error) or str(others) in str(error), changed.keys()
            refused += 1
        else:  # the tensor is one that the converter leaves out
            shutil.rmtree(tmp_path / "out")
    assert refused


def test_layers_with_gaps_do_not_make_a_model_of_a_billion_layers(folders, tmp_path):
    for converter in ("act-cls", "point-encoder", "qformer"):
        opened = CONVERTERS[converter]
        original = opened.content()
        state = {}
        for name, tensor in original[opened.state].items():
            state[re.sub(r"(blocks\.|layer\.)0\.", r"\g<1>999999999.", name)] = tensor
        torch.save(original | {opened.state: state}, tmp_path / "original.pth")
        with pytest.raises(ValueError, match="original.pth: .*(do not fit|is missing)"):
            opened.convert(tmp_path / "original.pth", tmp_path / "out", folders(converter))


def test_kernels_that_read_several_points_are_refused(folders, tmp_path):
    for converter in ("act-cls", "point-encoder"):
        opened = CONVERTERS[converter]
        original = opened.content()
        state = original[opened.state]
        name = next(name for name in state if name.endswith("encoder.first_conv.0.weight"))
        torch.save(original | {opened.state: state | {name: state[name].repeat(1, 1, 2)}}, tmp_path / "original.pth")
        with raises(ValueError, naming="original.pth"):
            opened.convert(tmp_path / "original.pth", tmp_path / "out", folders(converter))


# Names of tensors that are none, and what else may stand in the place of a tensor or of all.
NAMES = (3, -1, True, None, 1.5, b"a", ("a", 1), (), "", "\n", "a\nb", "\0", "a" * 5000)
VALUES = (3, None, "text", [torch.ones(2)], {}, {"a": torch.ones(2)}, {3: torch.ones(2)}, True, b"bytes")
STATES = ({}, [], None, "text", torch.ones(2), {"net": {"a": torch.ones(2)}}, {3: {"a": torch.ones(2)}})


def malformed(state: dict[str, torch.Tensor]) -> Iterator[Any]:
    """Yield what programs may store in the place of tensors by their names."""
    first = next(iter(state))
    for name in NAMES:
        yield {**state, name: torch.ones(2)}
        yield {name: state[first]}
    for value in VALUES:
        yield {**state, first: value}
        yield {first: value}
    yield dict(enumerate(state.values()))
    yield {"net": state}
    yield list(state.items())
    yield from STATES


@pytest.mark.slow
@pytest.mark.parametrize("converter", CONVERTERS)
def test_every_converter_refuses_names_and_values_that_are_none_in_a_line(converter, folders, tmp_path):
    opened, file, output = CONVERTERS[converter], tmp_path / "original.pth", tmp_path / "out"
    original = opened.content()
    # Of all tensors a few are enough, as none of these files gets as far as to be compared with a model.
    state = dict(itertools.islice(original[opened.state].items(), 5))
    for number, bad in by_turns_of(converter, enumerate(malformed(state)), 7):
        contents = ({**original, opened.state: bad}, bad)
        for content in contents if ALL_PAIRS else contents[number % 2 :][:1]:
            torch.save(content, file)
            with pytest.raises(ValueError) as caught:
                opened.convert(file, output, folders(converter))
            text = str(caught.value)
            assert file.name in text or str(folders(converter)) in text, (bad, text)
            assert text.isprintable() and len(text) < 2000 and "object" not in text, (bad, text)
            with pytest.raises(ValueError, match="original.pth"):
                convert_files([file], output, {})
            assert not output.exists()


@pytest.mark.parametrize("name", NAMES)
def test_names_of_tensors_are_text(saved, name):
    torch.save({"model": {"a": torch.ones(1), name: torch.ones(1)}}, saved)
    with raises(ValueError, naming="expected the name of a module's tensor"):
        read_checkpoint(saved)


def test_converted_parts_are_checked_again(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    opened, folder = CONVERTERS["minigpt3d-stage"], folders("minigpt3d-stage")
    torch.save(opened.content(), tmp_path / "stage.pth")
    torch.save(CONVERTERS["point-encoder"].content(), tmp_path / "point_model.pth")
    CONVERTERS["point-encoder"].convert(tmp_path / "point_model.pth", tmp_path / "part", folder)
    state = load_file(tmp_path / "part" / "point_encoder" / "model.safetensors")
    state["norm.bias"][0] = torch.nan
    save_file(state, tmp_path / "part" / "point_encoder" / "model.safetensors", {"format": "pt"})
    others = tmp_path / "others"
    shutil.copytree(folder, others)
    (others / "point_model.pth").unlink()
    shutil.move(tmp_path / "part" / "point_encoder", others / "point_model.pth")
    with pytest.raises(ValueError, match="NaN or infinite numbers in 1 tensors: norm.bias"):
        opened.convert(tmp_path / "stage.pth", tmp_path / "out", others)
