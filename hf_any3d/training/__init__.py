"""Training: arguments, data, models, trainer and reports of the training programs."""
