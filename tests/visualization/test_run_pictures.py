"""Pictures of a confusion matrix: its counts and names, shaded by the shares of the rows."""

import re

import numpy as np
from matplotlib import rc_context

from hf_any3d.visualization.run_results import plot_confusion_matrix

MATRIX = np.array([[3, 3, 0], [10_000, 9_999, 20_001], [0, 0, 0]])


def test_a_matrix_has_its_counts_row_by_row_and_the_names_of_both_axes(tmp_path):
    with rc_context({"svg.fonttype": "none"}):
        path = plot_confusion_matrix(MATRIX.tolist(), ["a", "$b", "c"], tmp_path / "m.SVG", title="Con$fusion")
    texts = re.findall(r"<text style=\"([^\"]*)\".*?>([^<]*)</text>", path.read_text(encoding="utf-8"))
    names = ["a", "$b", "c"]
    expected = [*names, "predicted class", *names, "true class", "3", "3", "1e+04", "9999", "2e+04", "Con$fusion"]
    assert [text for _, text in texts] == expected
    # On dark cells, beyond a half, counts are white.
    assert [text for style, text in texts if "fill: #ffffff" in style] == ["2e+04"]
