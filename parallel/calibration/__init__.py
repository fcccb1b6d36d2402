"""Calibration: measuring compute, messages and step overhead of this machine, to a cluster file."""
