"""Numbers of things against ground truth."""
