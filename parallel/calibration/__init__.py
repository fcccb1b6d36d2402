"""Calibration: measure computing, messages and overheads of this machine, and write a cluster
file."""
