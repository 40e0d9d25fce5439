"""Benchmarks: time and memory of our operations next to a plain form of them, measured in one process.

Run a benchmark as a module from the checkout, `python -m studies.speed.point_ops`; results/ has the published tables.
"""
