"""The command that runs a result again, to paste into a shell."""

from __future__ import annotations

import shlex

from parallel.results.records import Record

TRAIN, TORCHRUN = "parallel.train", "parallel.torchrun"


def command_again(record: Record) -> str:
    """Return the command of a record without its run directory, which holds a finished run, and with the
    number of processes that a sweep's launcher would have started.

    A command that does not train (of an imported record) is returned as it is.
    """
    try:
        words = shlex.split(record.command)
    except ValueError:
        return record.command
    if TRAIN not in words:
        return record.command
    arguments = [word for word in words[words.index(TRAIN) + 1 :] if not word.startswith("hydra.run.dir=")]
    start = ["python"]
    if len(record.hosts) > 1 and TORCHRUN in words:
        start += words[words.index("-m") : words.index(TRAIN) - 1]  # states how hosts find each other
    elif record.workers > 1:
        start += ["-m", TORCHRUN, "--nproc-per-node", str(record.workers)]
    return shlex.join([*start, "-m", TRAIN, *arguments])
