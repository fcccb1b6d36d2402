"""A Hydra launcher whose jobs are torchrun process trees."""
