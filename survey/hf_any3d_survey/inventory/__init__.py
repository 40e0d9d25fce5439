"""Inventory of a place: ground, heights, classes, and each tree and building with a number."""
