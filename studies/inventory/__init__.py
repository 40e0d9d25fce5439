"""Studies of what stands in a scene."""
