"""What commands share: composing the configuration, errors and exit codes, run directories, ranks,
sweeps."""
