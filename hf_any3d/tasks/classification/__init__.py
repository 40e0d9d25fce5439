"""Classes of clouds."""
