"""Verification of plans: compare losses, gradients and weights with plain PyTorch, and find the
first difference."""
