"""Convert OpenShape's point encoders: their tensors under our names, and directories that open."""
