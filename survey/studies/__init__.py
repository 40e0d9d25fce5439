"""Studies of what stands in scans of places: ground, classes, trees, and which points to label next."""
