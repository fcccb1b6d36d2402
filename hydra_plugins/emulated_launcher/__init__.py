"""A Hydra launcher that runs each job in an emulated cluster of its own."""
