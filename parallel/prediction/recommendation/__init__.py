"""Which cluster, how many workers and which strategy reach an epoch time: predicted options and the choice."""
