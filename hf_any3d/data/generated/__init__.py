"""Datasets of the registry that are made by code when they are loaded."""
