"""Millions of files on one machine or a cluster, with Ray Data: read, convert, classify, embed, caption.

    from hf_any3d import scale

    clouds = scale.read_point_clouds("s3://bucket/scans", num_points=1024)
    scale.to_parquet(clouds, "s3://bucket/points")
    scale.to_parquet(scale.classify(clouds, "me/model"), "labels")

Nothing runs before rows are iterated or written. Needs `pip install 'hf-any3d[ray]'`.
"""

from hf_any3d.scale.parquet import Written, to_parquet
from hf_any3d.scale.rows import CloudRows, caption, classify, embed, read_point_clouds

__all__ = ["CloudRows", "Written", "caption", "classify", "embed", "read_point_clouds", "to_parquet"]
