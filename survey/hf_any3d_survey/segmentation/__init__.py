"""Segmentation of points by features of their surroundings: steps and pipeline."""
