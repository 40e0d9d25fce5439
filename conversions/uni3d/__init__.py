"""Convert Uni3D's point encoders: their tensors under our names, and directories that open."""
