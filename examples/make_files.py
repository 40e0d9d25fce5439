"""Make the mesh files of the quickstart from a furniture collection of Sweet Home 3D.

The collection is BlendSwap-CC-0.sh3f of the package sweethome3d-furniture, a ZIP of OBJ files. Every mesh is written
as a binary PLY with the colors of its materials; textures are left out.

    python examples/make_files.py --collection BlendSwap-CC-0.sh3f
"""

import argparse
import tempfile
import zipfile
from pathlib import Path

from hf_any3d.data.files import read_point_cloud, write_point_cloud

FOLDER = "blendswap-cc-0"
# File: name of the mesh in the collection and of its row in the embedded shapes. All are CC0.
FILES = {
    "chair.ply": "chair2",
    "stool.ply": "foldingChair",
    "table.ply": "table",
    "lamp.ply": "desklamp",
    "shelves.ply": "shelves",
    "sofa.ply": "couch2",
}


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", type=Path, required=True, help="BlendSwap-CC-0.sh3f")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data", help="folder of the files")
    options = parser.parse_args()
    with zipfile.ZipFile(options.collection) as archive, tempfile.TemporaryDirectory() as folder:
        for file, name in FILES.items():
            for member in (f"{FOLDER}/{name}/{name}.obj", f"{FOLDER}/{name}/{name}.mtl"):
                archive.extract(member, folder)
            mesh = read_point_cloud(Path(folder) / FOLDER / name / f"{name}.obj")
            write_point_cloud(options.output / file, mesh)
            print(f"{options.output / file}: {len(mesh.points)} vertices, {len(mesh.faces)} triangles")


if __name__ == "__main__":
    main()
