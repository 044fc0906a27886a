"""Processor architectures as frozen data."""
