"""Programs behind the weights that come with the package and the tables of the README, and measurements of speed.

Run one as a module from the checkout, `python -m studies.few_scans`; results/ has the published tables.
"""
