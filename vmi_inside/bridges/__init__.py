"""Bridges: a guest in the hands of tools that people already have."""
