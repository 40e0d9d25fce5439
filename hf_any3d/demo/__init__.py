"""A page in the browser on which one talks about point clouds. Its layout needs gradio, the rest does not."""
