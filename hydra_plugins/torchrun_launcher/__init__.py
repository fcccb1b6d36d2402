"""A Hydra launcher that runs each job in its own torchrun process tree."""
