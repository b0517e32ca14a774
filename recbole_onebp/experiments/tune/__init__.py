"""Hyper-parameter search by Optuna: every model gets the same budget, and only validation is evaluated."""
