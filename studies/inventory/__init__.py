"""What is found in scans without labels: trees."""
