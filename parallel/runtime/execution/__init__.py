"""Running a program on one worker: steps, parameters, buffers."""
