"""Running a program on one worker: steps, parameters, buffers; and the outside reference, DDP."""
