"""Evaluate models on point clouds: metrics of each task, and published protocols for models that answer questions."""
