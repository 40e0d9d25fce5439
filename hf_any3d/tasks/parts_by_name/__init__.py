"""Parts that are found by their names."""
