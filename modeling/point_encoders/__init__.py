"""What several models of points share: blocks and heads, text towers, comparison with texts."""
