"""Labels in a copy of the file that they are of: every point and everything else as it was, only the class is new."""

from hf_any3d.data.files.labels.writing import check_labels_fit, copy_endings, write_labels

__all__ = ["check_labels_fit", "copy_endings", "write_labels"]
