"""Many files, on this machine or a cluster: read, convert, classify, embed, find objects, caption.

    from hf_any3d import many_files

    clouds = many_files.read_point_clouds("scans", num_points=1024)  # or a bucket
    many_files.to_parquet(clouds, "points", engine="local", workers=4)
    many_files.to_parquet(many_files.classify(clouds, "me/model"), "labels")  # on Ray, of `hf-any3d[ray]`

Nothing runs before rows are written. The command `hf-any3d batch` runs on the same engine:

- `files`: which files, and their clouds; `work`: what a process does with them, a row for each;
- `executors`: where it is done, in processes of this machine or of Ray;
- `runs`: what is done already, and what is left, in a table of lines; `parts`: rows in Parquet.

Names are imported when first used.
"""

from typing import TYPE_CHECKING

from hf_any3d.utils.public_names import imported_on_use

if TYPE_CHECKING:  # for editors and type checkers
    from hf_any3d.many_files.parts import Written as Written, to_parquet as to_parquet
    from hf_any3d.many_files.rows import (
        CloudRows as CloudRows,
        caption as caption,
        classify as classify,
        detect as detect,
        embed as embed,
        read_point_clouds as read_point_clouds,
    )

__all__, __getattr__, __dir__ = imported_on_use(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]
