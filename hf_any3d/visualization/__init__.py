"""Pictures and self-contained pages of point clouds, predictions, features and reconstructions."""
