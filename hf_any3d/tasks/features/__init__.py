"""Features of clouds."""
