"""Heads, task mixins and the checks of `forward`, shared by the models."""
