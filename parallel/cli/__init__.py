"""Shared by all commands: composing the configuration, errors and exit codes, run directories, ranks,
sweeps."""
