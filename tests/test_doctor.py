import subprocess
import sys
from pathlib import Path

import pytest

from tests import doctor

PROGRAM = Path(doctor.__file__)


SETUP = """
[options]
python_requires = >=3.10
install_requires =
    # a comment
    peft>=0.20
    transformers>=5.23
[options.extras_require]
dev =
    pytest>=8.0
files =
    h5py>=3.10
    laspy[lazrs]>=999
"""


@pytest.fixture
def findings(monkeypatch, capsys, tmp_path):
    """Run it with few requirements and a quick check of torch; return its exit status and lines."""
    (tmp_path / "setup.cfg").write_text(SETUP)

    def run(torch='print(\'{"cuda": null, "hip": null, "gpu": false, "mps": false}\')'):
        monkeypatch.setattr(doctor, "TORCH", torch)
        status = doctor.main(tmp_path / "setup.cfg")
        return status, capsys.readouterr().out.splitlines()

    return run


def test_it_runs_where_nothing_is_installed_and_says_what_to_do():
    # -S leaves out the site packages.
    result = subprocess.run([sys.executable, "-I", "-S", PROGRAM], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert result.returncode == 1 and not result.stderr
    assert "MISSING  hf-any3d is not installed: make install" in lines
    assert any(line.startswith("MISSING  torch is not installed; expected >=") for line in lines)
    assert any(line.startswith("optional [files] for HDF5") and "h5py" in line for line in lines)
    missing = [line for line in lines if line.startswith("MISSING")]
    assert all(line.endswith(": make install") for line in missing) and lines[-1] == f"{len(missing)} missing"


def test_a_torch_that_does_not_start_is_missing(findings):
    status, lines = findings("raise ImportError('libcudart.so.13: cannot open')")
    assert status == 1
    assert any(line.startswith("MISSING  torch cannot be imported (ImportError: libcudart.so.13") for line in lines)


def test_full_disks_and_old_packages_are_named(findings, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "GIGABYTES", 10**9)
    versions = {"peft": "0.9.1"}
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name) or installed(name))
    status, lines = findings()
    assert status == 1
    assert any(line.startswith("MISSING  peft is 0.9.1; expected >=") for line in lines)
    assert any(str(tmp_path) in line and line.endswith("set HF_DATASETS_CACHE") for line in lines)
