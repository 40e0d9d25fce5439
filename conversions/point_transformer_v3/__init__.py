"""Convert Sonata, Concerto and Utonia: their tensors under our names, and directories that open."""
