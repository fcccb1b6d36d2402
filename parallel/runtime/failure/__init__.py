"""Noticing that a worker died, hangs or computes nonsense, and naming it."""
