"""Clouds that pass through an autoencoder."""
