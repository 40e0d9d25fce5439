"""Segmentation models of a few labeled tiles or objects, in minutes on one thread."""
