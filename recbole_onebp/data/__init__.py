"""Data sets: how they are read, checked, cached, split and loaded."""
