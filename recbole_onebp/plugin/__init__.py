"""How RecBole is patched for today's Python stack, and how it finds OneBP by name."""
