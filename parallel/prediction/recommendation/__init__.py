"""Recommend a cluster, a number of workers and a strategy, among predicted options."""
