"""Tests of the Python package, by theme, across real processes."""
