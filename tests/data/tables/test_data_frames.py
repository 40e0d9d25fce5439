"""Tables of other packages are the clouds that their columns say, whoever gets them."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Array2D, Dataset, Features, Value

from hf_any3d.data.feature import PointCloud
from hf_any3d.data.files import PointCloudError
from hf_any3d.data.inputs import split_clouds, to_cloud
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.tasks.steps import as_clouds
from tests.errors import raises

XYZ = np.random.default_rng(0).random((20, 3))
COLORS = np.arange(60, dtype=np.uint8).reshape(20, 3)
FRAME = pd.DataFrame(XYZ, columns=["X", "y", "z"]).assign(red=COLORS[:, 0], green=COLORS[:, 1], blue=COLORS[:, 2])


class DataFrame:
    """What is used of a frame of polars, which need not be installed."""

    __module__ = "polars.dataframe.frame"

    def __init__(self, frame):
        self.frame, self.columns = frame, list(frame.columns)

    def __getitem__(self, name):
        return self.frame[name]


MAKERS = {"pandas": lambda frame: frame, "polars": DataFrame, "arrow": pa.Table.from_pandas}
MAKERS |= {"a batch of arrow": pa.RecordBatch.from_pandas}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_rows_of_coordinates_are_one_cloud(make, tmp_path):
    table = make(FRAME)
    clouds = [
        to_cloud(table),
        to_cloud(as_clouds(table)),
        *split_clouds(table),
        *map(to_cloud, split_clouds([table, table])),
    ]
    stored = PointCloud(format="npz").encode_example(table)
    clouds.append(to_cloud(stored))
    for cloud in clouds:
        np.testing.assert_allclose(cloud.points, XYZ, atol=1e-6)
        np.testing.assert_allclose(cloud.colors, COLORS / 255, atol=1e-6)
    processor = PointCloudProcessor(num_points=8)
    expected = processor([XYZ, XYZ])["points"]
    assert np.allclose(processor([table, table])["points"], expected, atol=1e-6)


@pytest.mark.parametrize("form", ["pandas", "arrow"])
@pytest.mark.parametrize("with_label", [True, False])
def test_tables_with_a_cloud_in_each_row_are_many(form, with_label):
    columns = {"points": Array2D((None, 3), "float32")} | ({"label": Value("int64")} if with_label else {})
    rows = [{"points": XYZ[: 20 - number].tolist(), "label": number} for number in range(3)]
    dataset = Dataset.from_list([{name: row[name] for name in columns} for row in rows], Features(columns))
    table = dataset.with_format(form)[:]
    assert (
        [len(to_cloud(cloud)) for cloud in split_clouds(table)]
        == [20, 19, 18]
        == [len(to_cloud(cloud)) for cloud in as_clouds(table).rows]
    )
    # A row in that format is a table, too.
    assert len(to_cloud(dataset.with_format(form)[1])) == 19


def test_paths_in_tables_are_files(tmp_path):
    for name in ("a", "b"):
        np.savetxt(tmp_path / f"{name}.xyz", XYZ)
    frame = pd.DataFrame({"path": [str(tmp_path / f"{name}.xyz") for name in "ab"], "label": [0, 1]})
    many = (
        frame,
        pa.Table.from_pandas(frame),
        frame["path"],
        pa.array(frame["path"]),
        pa.chunked_array([frame["path"]]),
    )
    for table in many:
        assert [len(to_cloud(cloud)) for cloud in split_clouds(table)] == [20, 20]
    assert len(to_cloud(frame.iloc[1])) == 20


def test_a_table_without_names_has_channels_in_the_order_of_the_features():
    table = pd.DataFrame(np.concatenate([XYZ, COLORS], axis=1))
    np.testing.assert_allclose(to_cloud(table, ("xyz", "rgb")).colors, COLORS / 255, atol=1e-6)


@pytest.mark.parametrize(
    "table", [pd.DataFrame({"a": [1.0]}), pd.DataFrame(), pa.table({"file": ["a.ply"]}), pd.DataFrame(XYZ[:, :2])]
)
def test_other_tables_are_refused_with_the_columns_that_are_expected(table):
    for take in (split_clouds, to_cloud, as_clouds, PointCloudProcessor()):
        with raises(PointCloudError, naming="expected columns x, y and z"):
            take(table)
