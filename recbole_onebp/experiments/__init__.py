"""Experiments of many runs: comparisons and hyper-parameter search."""
