"""Pictures and self-contained HTML pages of point clouds, predictions, features and reconstructions."""
