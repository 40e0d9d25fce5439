"""Convert PatchAlign3D's point encoder: its tensors under our names, and directories that open."""
