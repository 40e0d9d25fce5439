"""Boxes, labels and layouts of scenes: their columns, and the files of programs that draw them."""
