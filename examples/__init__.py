"""Programs to copy, with recipes and data."""
