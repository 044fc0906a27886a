"""Changing a guest: pauses, guarded writes, a journal, kernel functions called. Each file knows one of them."""
