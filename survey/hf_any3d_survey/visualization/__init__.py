"""Page on which suggested points are labeled."""
