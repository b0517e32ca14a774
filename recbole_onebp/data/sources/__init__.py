"""Data sets as RecBole's atomic files with a manifest: published splits by name, and the user's own files."""
