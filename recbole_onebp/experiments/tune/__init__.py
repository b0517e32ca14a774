"""Hyper-parameters searched on validation by Optuna, every model on the same budget; the test part is not looked at."""
