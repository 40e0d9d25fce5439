"""A page in the browser to ask a model about point clouds; only its layout needs gradio."""
