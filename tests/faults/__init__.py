"""Things that go wrong while a guest is controlled, each at a random step of a command, many times, counted.

`python -m tests.faults` is the campaign for people; `test_faults_lab.py` runs a short one.
"""
