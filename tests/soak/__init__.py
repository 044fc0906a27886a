"""A guest read and controlled for long: whether we grow or slow down, and what it costs the guest.

`python -m tests.soak` runs as long as it is told; `test_soak_lab.py` is a short one.
"""
