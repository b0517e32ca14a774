"""Data sets: published splits by name, and interactions of one's own, as RecBole's atomic files with a manifest."""
