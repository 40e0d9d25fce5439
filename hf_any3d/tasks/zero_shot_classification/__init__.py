"""Clouds among labels of one's own."""
