"""Recommend a cluster, a number of workers and a strategy: predict all options, choose, and show
both."""
