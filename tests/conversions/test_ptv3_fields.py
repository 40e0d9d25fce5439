"""Arguments of Point Transformer V3's constructors as fields of our config, and what files of its models show."""

from hf_any3d.conversions.point_transformer_v3.benchmarks import BENCHMARKS, CONDITION_CLASSES, TEXTS
from hf_any3d.conversions.point_transformer_v3.supervised import (
    TRAINED_WITH,
)


def test_tables_of_benchmarks_fit_each_other():
    counts = {name: len(one.classes) for name, one in BENCHMARKS.items()}
    assert counts == {"scannet": 20, "scannet200": 200, "s3dis": 13, "nuscenes": 16, "waymo": 22}
    assert {name: len(one.hex_colors or ()) for name, one in BENCHMARKS.items()} == counts | {"waymo": 0}
    assert BENCHMARKS["waymo"].hex_colors is None and len(TEXTS) == 36
    # Texts of the heads are names of the classes, in their order, but for S3DIS, whose order is that of the texts.
    assert [TEXTS[number] for number in CONDITION_CLASSES["ScanNet"]] == [
        {"refridgerator": "refrigerator"}.get(name, name)
        for name in BENCHMARKS["scannet"].classes
        if name in TEXTS or name == "refridgerator"
    ]
    assert sorted(TEXTS[number] for number in CONDITION_CLASSES["S3DIS"]) == sorted(BENCHMARKS["s3dis"].classes)
    assert [one.title for one in TRAINED_WITH.values()][0].startswith("Pointcept 1.5.0 or 1.5.1")
