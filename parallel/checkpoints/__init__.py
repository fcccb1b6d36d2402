"""Checkpoints: the state of a training on disk, independent of the plan that wrote it.

    piece.py        a worker's part of one tensor, in memory and in a file's header
    manifest.py     what a checkpoint says about itself: run, step, epochs so far, files with checksums
    checkpoint.py   reading: whole tensors from the pieces of all workers; finding the newest whole checkpoint
    saver.py        writing: a snapshot, then files, checksums and a rename in the background
    schedule.py     when a checkpoint is due

The files are safetensors, which hold numbers and a JSON header, so that reading one never runs
code. `torch.distributed.checkpoint` was the alternative (torch 2.13). Its own storage keeps the
metadata as a pickle; its safetensors storage stores blocks with an offset and a length in every
dim, which a span of a bucket in general is not; neither has checksums. Both run collectives to
write in the background, which need a process group of their own with a CPU backend; the mode
without them is experimental.
"""
