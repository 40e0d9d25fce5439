"""How much accuracy a classifier keeps on corrupted, sparse, rotated and colorless copies of labeled clouds."""
