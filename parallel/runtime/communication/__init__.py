"""Moving tensors between workers: messages over process groups, shared memory and pipes."""
