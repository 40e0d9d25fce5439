"""Compile all Triton kernels for GPUs that are not there, down to machine code.

    python -m tests.gpu_check.compile --capability 80 90

The launches of all calls that `parity` makes are recorded on the CPU, where nothing runs, and compiled with their
arguments' types and constants. Prints registers, shared memory and spilled bytes of a thread; exits with 1 if a kernel
does not compile, needs more shared memory than a GPU of its capability has, adds atomically, or fuses a product with a
sum though it must round as its twin does.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from tests.gpu_check.kernels import calls
from tests.gpu_check.run import Run

# Bytes of shared memory that a program may have.
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64", torch.int32: "i32"}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


def recorded(pattern: str = "") -> dict[str, tuple[JITFunction, dict[str, Any], dict[str, Any]]]:
    """Return the launches of the calls whose names match: the kernel, its arguments by name and its options."""
    launches: dict[str, tuple[JITFunction, dict[str, Any], dict[str, Any]]] = {}
    called = ""

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {key: kwargs.pop(key) for key in _OPTIONS if key in kwargs}
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        if "index" in arguments:
            arguments["index"].zero_()  # as nothing runs
        launches[f"{called}: {kernel.__name__} {len(launches)}"] = kernel, arguments, options

    before, JITFunction.run = JITFunction.run, record
    try:
        for name, call in calls(Run(torch.device("cpu"), small=False, seconds=60)).items():
            if not re.search(pattern, name):
                continue
            called = name
            call.outputs(call.kernel.triton)
            if call.leaves:
                call.gradients(call.kernel.triton)
    finally:
        JITFunction.run = before
    return launches


def compiled(kernel: JITFunction, arguments: dict[str, Any], options: dict[str, Any], capability: int) -> Any:
    """Compile a launch."""
    signature, constants, attributes = {}, {}, {}
    for number, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[number,] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{_TYPES[value.dtype]}"
            attributes[number,] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def faults_of(made: Any, capability: int) -> list[str]:
    """Return what must not be in a compiled kernel."""
    code, faults = made.asm["ptx"], []
    if made.metadata.shared > SHARED[capability]:
        faults.append(f"more than {SHARED[capability]} bytes shared")
    if re.search(r"^\s*(@\S+ )?(atom|red)\.", code, flags=re.MULTILINE):
        faults.append("adds atomically")
    if not made.metadata.enable_fp_fusion and re.search(r"\bfma\.", code):
        faults.append("fuses products with sums")
    return faults


def main(arguments: list[str] | None = None) -> int:
    """Compile, print a line for each launch, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check.compile", description=__doc__)
    parser.add_argument("--capability", type=int, nargs="+", choices=sorted(SHARED), default=[80, 90])
    parser.add_argument("--only", default="", metavar="PATTERN", help="calls whose names match")
    options = parser.parse_args(arguments)
    failed = 0
    for name, launch in recorded(options.only).items():
        for capability in options.capability:
            try:
                made = compiled(*launch, capability)
            except Exception as error:  # one kernel must not hide the others
                failed += 1
                print(f"FAILED {name}, {capability}: {type(error).__name__}: {str(error)[-600:]}", flush=True)
                continue
            shared, faults = made.metadata.shared, faults_of(made, capability)
            failed += bool(faults)
            verdict = "FAILED" if faults else "ok    "
            print(f"{verdict} {name}, {capability}: {shared} bytes shared, {_usage(made)} {faults or ''}", flush=True)
    return int(failed > 0)


def _usage(made: Any) -> str:
    """Return registers and spills from the machine code, by the disassembler that comes with triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        printed = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True).stdout
    found = re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)
    return ", ".join(f"{key.lower()} {value}" for key, value in found) or "no usage"


if __name__ == "__main__":
    sys.exit(main())
