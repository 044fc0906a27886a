"""Hostile bytes for everything that reads what a guest, a file or a stub says: `python -m tests.fuzz --seconds 60`.

A case is a number: the same seed, target and number make the same bytes. What must hold of each case stands in
`watch`: it ends, within bounds of rounds, bytes and memory, with a result that is well formed or with one `VmiError`.
`docs/fuzzing.md` says how to run it and what was run.
"""
