"""Classes of points: their codes in files, their names, and vectors of these names."""
