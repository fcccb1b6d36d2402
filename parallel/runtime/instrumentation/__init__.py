"""Timing and observing steps: the clock, observers of op results, traces."""
