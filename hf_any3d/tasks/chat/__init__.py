"""Conversations about clouds."""
