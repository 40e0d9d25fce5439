"""Frames of scans: axes, units, floors, and points that are far from all others."""
