"""Checkpoints of the authors' programs with changed tensors, names, keys and containers."""

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conversions.converters import CONVERTERS
from tests.fuzz.damage import mutate
from tests.fuzz.target import Target, canary

Change = Callable[[torch.Tensor, np.random.Generator], Any]


def _reshaped(tensor: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    shape = list(tensor.shape)
    kind = int(generator.integers(5))
    if kind == 0 or not shape:
        return tensor.flatten().clone()
    if kind == 1:
        return tensor[None].clone()
    if kind == 2:
        return tensor[..., None].repeat(*[1] * len(shape), int(generator.integers(1, 4)))
    axis = int(generator.integers(len(shape)))
    if kind == 3:
        return tensor.narrow(axis, 0, max(0, shape[axis] - int(generator.integers(1, 3)))).clone()
    return torch.cat([tensor, tensor], axis)


def _one_value(value: float, dtype: torch.dtype = torch.float32) -> Change:
    def change(tensor: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        changed = tensor.to(dtype, copy=True).contiguous()
        if changed.numel():
            changed.view(-1)[int(generator.integers(changed.numel()))] = value
        return changed

    return change


CHANGES: dict[str, Change] = {
    "sparse": lambda tensor, _: tensor.to_sparse(),
    "csr": lambda tensor, _: tensor.reshape(max(1, len(tensor) if tensor.ndim else 1), -1).to_sparse_csr(),
    "quantized": lambda tensor, _: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    "complex": lambda tensor, _: tensor.to(torch.complex64),
    "float8": lambda tensor, _: tensor.to(torch.float8_e5m2),
    "int64": lambda tensor, _: tensor.to(torch.int64),
    "bool": lambda tensor, _: tensor.to(torch.bool),
    "half": lambda tensor, _: tensor.half(),
    "bfloat16": lambda tensor, _: tensor.to(torch.bfloat16),
    "double": lambda tensor, _: tensor.double(),
    "expanded": lambda tensor, _: torch.zeros(1).expand(10**12),
    "expanded alike": lambda tensor, _: torch.zeros(1).expand(tensor.shape),
    "meta": lambda tensor, _: tensor.to("meta"),
    "nested": lambda tensor, _: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "parameter": lambda tensor, _: torch.nn.Parameter(tensor.float()),
    "nan": _one_value(float("nan")),
    "inf": _one_value(float("-inf")),
    "too large": _one_value(1e300, torch.float64),
    "one number": lambda tensor, _: torch.tensor(3.0),
    "nothing": lambda tensor, _: torch.zeros(0),
    "no rows": lambda tensor, _: torch.zeros(0, *tensor.shape[1:]),
    "no columns": lambda tensor, _: torch.zeros(*tensor.shape[:1], 0),
    "transposed": lambda tensor, _: tensor.T if tensor.ndim == 2 else tensor,
    "reshaped": _reshaped,
    "many axes": lambda tensor, _: torch.ones([1] * 40),
    "huge": lambda tensor, _: torch.zeros(1).as_strided((2**31, 2**31), (0, 0)),
    "text": lambda tensor, _: "a text",
    "none": lambda tensor, _: None,
    "list": lambda tensor, _: tensor.flatten()[:3].tolist(),
    "dict": lambda tensor, _: {"inside": tensor},
}
_ODD_NAMES = (
    "",
    "\x1b[2Jname",
    "a\nerror: forged",
    "module.module.x",
    "blocks.999999999999.norm1.weight",
    "x" * 10_000,
)


OPEN_ENCODERS = ("openshape", "patchalign3d", "ptv3", "uni3d")
"""Entry points that have a target of their own, since their files come from the hub."""


class Payload:
    """Runs a command when it is unpickled unsafely."""

    def __init__(self, command: str, way: str):
        self.command, self.way = command, way

    def __reduce__(self):
        if self.way == "system":
            return os.system, (self.command,)
        return (exec if self.way == "exec" else eval), (f"__import__('os').system({self.command!r})",)


@dataclass
class Case:
    """A file for a converter and the changes made to it."""

    entry_point: str
    data: bytes
    done: list[str]


class Checkpoints(Target):
    """A changed checkpoint is converted, or refused in one line that names the file."""

    name = "checkpoints"
    refusals = (ValueError, OSError)
    inputs = 100
    # Cheap ones are tried more often.
    entry_points = tuple(name for name in CONVERTERS if name not in OPEN_ENCODERS)
    entry_points += ("act-cls", "point-encoder", "qformer", "imagebind-audio") * 3

    def prepare(self, folder: Path) -> None:  # noqa: D102
        self.folders, self.contents = {}, {}
        for name in dict.fromkeys(self.entry_points):
            self.folders[name] = folder / name
            self.folders[name].mkdir()
            CONVERTERS[name].prepare(self.folders[name])
            self.contents[name] = CONVERTERS[name].content()
        name = self.entry_points[-1]
        first = Case(name, _saved(self.contents[name]), [])
        (folder / "warm").mkdir()
        self.attempt(first, folder / "warm")

    def make(self, generator: np.random.Generator, folder: Path) -> Case:  # noqa: D102
        torch.set_num_threads(1)  # a fork has no threads of its parent
        entry_point = str(generator.choice(self.entry_points))
        content, key = dict(self.contents[entry_point]), CONVERTERS[entry_point].state
        state, done = dict(content[key]), []
        for _ in range(int(generator.choice([0, 1, 2, 4], p=[0.15, 0.6, 0.15, 0.1]))):
            done.append(_change_state(state, generator))
        content[key] = state
        if generator.random() < 0.1:
            content, what = _change_content(content, key, generator, canary(folder))
            done.append(what)
        legacy = generator.random() < 0.05
        try:
            data = _saved(content, legacy)
        except Exception:  # torch does not save some tensors
            data, done = _saved(self.contents[entry_point]), ["nothing"]
        if generator.random() < 0.3 or not done:
            data, what = _change_file(data, generator)
            done.append(what)
        return Case(entry_point, data, done)

    def attempt(self, case: Case, folder: Path) -> None:  # noqa: D102
        file, others = folder / "original.pth", self.folders[case.entry_point]
        file.write_bytes(case.data)
        if case.entry_point in ("phi", "spatiallm"):  # their weights are stored with the other files
            others = shutil.copytree(others, folder / "others")
        CONVERTERS[case.entry_point].convert(file, folder / "out", others)
        assert any((folder / "out").iterdir())

    def check_refusal(self, error: BaseException, case: Case, folder: Path) -> None:  # noqa: D102
        text = str(error)
        assert len(text) < 20_000, len(text)
        assert str(folder) in text, text
        assert sorted(path.name for path in folder.iterdir()) in (["original.pth"], ["original.pth", "others"])

    def describe(self, case: Case) -> str:  # noqa: D102
        return f"{case.entry_point}: {', '.join(case.done)}; {len(case.data):,} bytes"


class OpenEncoderCheckpoints(Checkpoints):
    """The same for the files of published point encoders."""

    name = "checkpoints of open encoders"
    inputs = 40
    entry_points = OPEN_ENCODERS


def _change_state(state: dict[str, Any], generator: np.random.Generator) -> str:
    names = list(state)
    name = names[int(generator.integers(len(names)))] if names else "x"
    kind = generator.random()
    tensor = state.get(name)
    # One that an earlier change expanded would take terabytes where it is copied.
    if kind < 0.7 and isinstance(tensor, torch.Tensor) and tensor.numel() < 10**9:
        change = str(generator.choice(list(CHANGES)))
        try:
            state[name] = CHANGES[change](tensor, generator)
        except (RuntimeError, NotImplementedError, ValueError, IndexError):
            state[name] = torch.zeros(1)
        return f"{name} is {change}"
    if kind < 0.8:
        state.pop(name, None)
        return f"{name} is missing"
    if kind < 0.85:
        other = names[int(generator.integers(len(names)))]
        state[other] = state[name]
        return f"{other} is {name}"
    if kind < 0.9:
        number = int(generator.choice([2, 7, 10**3, 10**9, 10**30]))
        parts = name.split(".")
        numbered = [place for place, part in enumerate(parts) if part.isdigit()]
        if numbered:
            parts[int(generator.choice(numbered))] = str(number)
        state[".".join(parts)] = state[name] if generator.random() < 0.5 else state.pop(name)
        return f"{name} becomes {'.'.join(parts)[:100]}"
    if kind < 0.95:
        odd = _ODD_NAMES[int(generator.integers(len(_ODD_NAMES)))]
        state[odd] = torch.ones(2)
        return f"further {odd[:20]!r}"
    state[f"module.{name}"] = state[name]
    return f"module.{name} too"


def _change_content(content: dict[str, Any], key: str, generator: np.random.Generator, file: Path) -> tuple[Any, str]:
    kind = int(generator.integers(8))
    if kind == 0:
        return content[key], "the state alone"
    if kind == 1:
        return {"other": content[key]}, "under another key"
    if kind == 2:
        return list(content[key].values()), "a list"
    if kind == 3:
        entry_point = str(generator.choice(["system", "exec", "eval"]))
        return content | {"payload": Payload(f"touch {file}", entry_point)}, f"payload {entry_point}"
    if kind == 4:
        return content | {
            key: {number: tensor for number, tensor in enumerate(content[key].values())}
        }, "numbers as names"
    if kind == 5:
        deep: Any = content
        for _ in range(500):
            deep = {"model": deep}
        return deep, "deep"
    if kind == 6:
        return content | {key: {}}, "no tensors"
    return torch.ones(3), "a tensor"


def _change_file(data: bytes, generator: np.random.Generator) -> tuple[bytes, str]:
    kind = int(generator.integers(7))
    if kind == 0:
        return _repacked(data, generator, zipfile.ZIP_DEFLATED, False), "deflated"
    if kind == 1:
        return _repacked(data, generator, zipfile.ZIP_STORED, True), "stored, a member changed"
    if kind == 2:
        return _repacked(data, generator, zipfile.ZIP_DEFLATED, True), "deflated, a member changed"
    if kind == 3:
        return data[: int(generator.integers(len(data)))], "cut"
    if kind == 4:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                info = tarfile.TarInfo(name)
                info.size = 100
                tar.addfile(info, io.BytesIO(data[:100]))
        return packed.getvalue(), "a tar"
    if kind == 5:
        return b"junk" * int(generator.integers(1, 9)) + data, "junk in front"
    return mutate(data, generator), "damaged"


def _repacked(data: bytes, generator: np.random.Generator, method: int, change: bool) -> bytes:
    packed = io.BytesIO()
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w", method) as new:
        names = old.namelist()
        chosen = names[int(generator.integers(len(names)))]
        for name in names:
            member = old.read(name)
            if change and name == chosen:
                kind = int(generator.integers(5))
                member = (
                    member[: len(member) // 2],
                    mutate(member, generator),
                    member + b"\0" * 64,
                    b"",
                    bytes(min(20 * 2**20, 1000 * max(1, len(member)))),
                )[kind]
            new.writestr(name, member)
            if change and name == chosen and generator.random() < 0.1:
                new.writestr(f"{name}.twice", member)
    return packed.getvalue()


def _saved(content: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


TARGETS = [Checkpoints(), OpenEncoderCheckpoints()]
