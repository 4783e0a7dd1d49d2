"""Measures the performance that the documentation claims. Not part of the released package."""
