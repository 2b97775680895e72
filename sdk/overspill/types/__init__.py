"""Frozen dataclasses that every layer shares; no I/O, no third-party import."""
