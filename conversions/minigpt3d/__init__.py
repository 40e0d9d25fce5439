"""MiniGPT-3D's checkpoints: names of tensors, sizes, the pretrained parts, and the whole model of four stages."""
