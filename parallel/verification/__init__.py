"""Holding a plan against plain PyTorch: parity of losses, gradients and weights, and the first difference."""
