"""Public names for type checkers, written by `python -m docs.tools.stubs`."""

from hf_any3d.many_files.parts import Written as Written, to_parquet as to_parquet
from hf_any3d.many_files.rows import (
    CloudRows as CloudRows,
    ask as ask,
    caption as caption,
    classify as classify,
    detect as detect,
    embed as embed,
    read_point_clouds as read_point_clouds,
)
