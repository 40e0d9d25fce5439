"""ACT (arXiv 2212.08320): a point encoder that learns from transformers of other modalities."""
