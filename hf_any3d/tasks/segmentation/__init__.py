"""Labels of points."""
