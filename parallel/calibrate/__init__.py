"""Measures this cluster: `python -m parallel.calibrate`; see `__main__`."""
