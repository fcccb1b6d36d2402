"""Detecting that a worker died, hangs or computes non-finite values, and naming it."""
