"""Judging language models that see point clouds: protocols, judges, counting and metrics of captions."""
