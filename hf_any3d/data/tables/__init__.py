"""Rows and columns: datasets, data frames and spreadsheets as clouds, and back."""
