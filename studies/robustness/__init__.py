"""Robustness of classifiers: accuracy on corrupted, sparse, rotated and colorless copies of labeled clouds."""
