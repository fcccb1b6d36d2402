"""From a command line to the processes of a run: configuration, run directories, sweeps. Only this part knows Hydra."""
