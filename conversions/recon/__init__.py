"""Convert ReCon's checkpoints: its tensors under our names, and directories that open."""
