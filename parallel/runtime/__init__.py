"""Running programs on workers: the only part that talks to process groups."""
