"""Predictions without the hardware: a step, a sweep over workers and clusters, a recommendation."""
