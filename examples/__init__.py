"""Programs to copy, with recipes and data, and the studies and benchmarks that produced the published tables."""
