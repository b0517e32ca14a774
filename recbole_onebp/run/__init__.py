"""From names to a result: build a run, train it, record it, resume it."""
