"""Helpers that know nothing of recommendation: errors, files, hashes, logs, YAML, SIMD sums."""
