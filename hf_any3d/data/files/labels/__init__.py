"""Write labels into a copy of a file, in which nothing but the class of each point changes."""

from hf_any3d.data.files.labels.writing import check_labels_fit, copy_endings, write_labels

__all__ = ["check_labels_fit", "copy_endings", "write_labels"]
