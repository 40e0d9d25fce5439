"""What a training run needs beside the model: metrics, pictures of results, and reports."""
