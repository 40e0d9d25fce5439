"""Many files, on this machine or a cluster: read, convert, classify, embed, find objects, caption.

    from hf_any3d import many_files

    clouds = many_files.read_point_clouds("scans", num_points=1024)  # or a bucket
    many_files.to_parquet(clouds, "points", engine="local", workers=4)
    many_files.to_parquet(many_files.classify(clouds, "me/model"), "labels")  # on Ray, of `hf-any3d[ray]`

Nothing runs before rows are written. Runs of commands, such as `hf-any3d predict --workers 4`, have the same engine:

- `work`: what a process does with files, a row for each;
- `executors`: where it is done, in processes of this machine or of Ray;
- `runs`: what is done already, and what is left, in a table of lines; `parts`: rows in Parquet.

Names are imported when first used.
"""

from hf_any3d.modeling.lazy_names import names_on_use

_MODULES = {
    "parts": ("Written", "to_parquet"),
    "rows": ("CloudRows", "ask", "caption", "classify", "detect", "embed", "read_point_clouds"),
}
__all__, __getattr__, __dir__ = names_on_use(__name__, _MODULES)
