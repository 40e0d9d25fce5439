"""Licenses of published weights: shown, and those that forbid commercial use asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_any3d.modeling.records import System
from hf_any3d.utils.atomic_files import read_json_object, write_json
from hf_any3d.utils.messages import print_line

ACCEPT = "HF_ANY3D_ACCEPT_LICENSE"
"""Environment variable with the names of repositories whose non-commercial licenses are accepted, or `all`."""
# Value of a command's option --accept-license; None outside of commands.
_option: bool | None = None


@contextmanager
def license_option(accept: bool) -> Iterator[None]:
    """Let the option `--accept-license` count for all that is opened, and let errors name it."""
    global _option
    before = _option
    _option = accept
    try:
        yield
    finally:
        _option = before


def license_text(system: System) -> str:
    """Return the licenses of weights and program in one line."""
    weights = f"{system.weights_license} (stated by {system.license_source})"
    if system.weights_license == System.weights_license:  # its source is what to see
        weights = f"see {system.license_source}"
    text = f"Weights: {weights}; program: {system.code_license}."
    return text + (" The license of the weights forbids commercial use." if system.non_commercial else "")


def check_license(subject: str, system: System, folder: Path, accept: bool) -> None:
    """Check that a license which forbids commercial use was accepted, now or before.

    Raises:
        ValueError: The license forbids commercial use and was not accepted; says how to accept it.
    """
    if not system.non_commercial:
        return
    accept = accept or bool(_option)
    # What was shown and what was accepted are kept in one file of the repository.
    file = folder / "license.json"
    record = read_json_object(file)
    if accept and not record.get("accepted"):
        write_json(file, {**record, "accepted": system.weights_license})
    named = {word.strip() for word in os.environ.get(ACCEPT, "").split(",")}
    # Another license than the one that was accepted has to be accepted anew.
    if not accept and record.get("accepted") != system.weights_license and not named & {subject, "all"}:
        how = "open_published(…, accept_license=True)" if _option is None else "--accept-license"
        raise ValueError(
            f"{subject}: the weights are under {system.weights_license} (stated by {system.license_source}), which "
            f"forbids commercial use; if yours is permitted, accept it once with {how}, or set {ACCEPT}={subject}"
        )


def show_license(subject: str, system: System, folder: Path) -> None:
    """Print the licenses when a repository is opened for the first time on this machine."""
    file = folder / "license.json"
    record = read_json_object(file)
    # Another license than the one that was shown is shown again.
    if record.get("shown") != system.weights_license:
        print_line(f"{subject}: {license_text(system)}", is_error=True)
        write_json(file, {**record, "shown": system.weights_license})
