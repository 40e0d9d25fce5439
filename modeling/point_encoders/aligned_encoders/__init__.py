"""Shared classes of point encoders that are aligned with text: OpenShape, Uni3D and PatchAlign3D."""
