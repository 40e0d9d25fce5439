"""Modules shared by several point models: transformer blocks, heads, text towers, zero-shot comparison."""
