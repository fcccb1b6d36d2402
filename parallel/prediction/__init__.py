"""Predictions without the hardware: a step, a sweep, a recommendation."""
