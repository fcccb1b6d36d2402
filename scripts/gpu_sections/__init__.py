"""The sections of scripts/gpu_check.py: each is a module with `run(setting)`, in a process of its own."""
