"""Timing and watching steps: the clock, observers of op results, traces."""
