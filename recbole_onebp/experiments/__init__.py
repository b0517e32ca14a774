"""Many runs: comparisons and hyper-parameter search."""
