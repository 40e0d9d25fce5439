"""Things that stand in a scan: each tree and block of buildings with its number."""
