"""Checks of clouds before they are learned or answered: damaged, equal, doubtful or left out."""
