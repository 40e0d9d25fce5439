"""MiniGPT-3D's original files: the pretrained parts that training starts from, and the checkpoints of its stages."""
