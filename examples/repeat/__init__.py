"""Published tables and figures, repeated step by step; series of runs over seeds and settings."""
