"""Studies of what is found in scans without labels: trees."""
