"""Files that are written whole, messages, text for cards, threads."""
