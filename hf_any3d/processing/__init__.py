"""Processors, one file each: from a file or an array to what a model takes."""
