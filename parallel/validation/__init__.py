"""Validation of the simulator: predicted step times of many plans compared with measured ones."""
