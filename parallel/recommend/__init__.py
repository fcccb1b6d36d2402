"""Which configuration, how many workers and which strategy: `python -m parallel.recommend`, see `__main__`."""
