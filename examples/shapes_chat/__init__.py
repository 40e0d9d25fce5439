"""A small MiniGPT-3D around a real language model, trained on colored shapes within an hour on two cores."""
