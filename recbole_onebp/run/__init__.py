"""One run, from names to a result: build, train, record, save and resume."""
