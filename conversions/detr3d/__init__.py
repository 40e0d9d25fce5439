"""Convert 3DETR's detectors: their tensors under our names, and directories that open."""
