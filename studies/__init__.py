"""Studies: accuracies of several models, trained alike with several seeds, as tables with mean and deviation.

Run a study as a module from the checkout, `python -m studies.learning`; results/ has the published tables.
"""
