"""Released checkpoints of SpatialLM 1.1."""
