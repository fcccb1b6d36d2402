"""Run a command that may have several ranks: report each error once and set the exit code.

Exit codes: 0 success; 1 a crash (with its traceback) or a sweep with a failed job; 2 invalid input
(one sentence); 130 Ctrl-C; 143 stopped by a signal, with a checkpoint to go on from.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from parallel.cli.agreement import agree
from parallel.cli.compose import compose_config
from parallel.cli.local_ranks import mpi_environment
from parallel.cli.ranks import Ranks
from parallel.cli.slurm_ranks import in_slurm, slurm_environment
from parallel.cli.sweep import SweepFailed
from parallel.config import Config, invalid_input, one_line, require
from parallel.config.stderr import print_to_stderr
from parallel.results.record_files import NotWritten
from parallel.runtime.failure.errors import InputRefused, RunEnded, RunStopped, WorkerLost
from parallel.runtime.failure.launcher import watch_launcher

FULL_ERROR = "PARALLEL_FULL_ERROR"
"""Environment variable; if it is set, invalid input and the end of a run print a traceback, too."""

STOPPED = 143
"""Exit code of a run that a signal stopped: 128 + SIGTERM, whatever the signal."""


def config_of_world(ranks: Ranks, overrides: Sequence[str], module: str) -> Config:
    """Return the composed configuration.

    Raises `ValueError` if `workers` is not the world size, or another worker has another
    configuration or other code.
    """
    config = compose_config(overrides)
    workers = config.workers or ranks.world
    require(
        workers == ranks.world,
        "workers",
        workers,
        f"needs a world of {workers}, and this one has {ranks.world}: "
        + (
            f"use `srun --ntasks {workers} python -m {module} …`"
            if in_slurm(ranks.environment)
            else f"use `python -m parallel.torchrun --nproc-per-node {workers} -m {module} …`"
        ),
    )
    agree(ranks, config)
    return config


def run_ranked(body: Callable[[Ranks], None]) -> None:
    """Run `body`; if it fails, report the error and end the process with its exit code.

    A `body` that fails should leave its process group open. Closing it would make the other ranks
    fail as well, and their errors might appear to come first.
    """
    try:
        os.environ.update(mpi_environment(os.environ, os.getppid()))
        os.environ.update(slurm_environment(os.environ))
        ranks = Ranks.from_environment(os.environ)
    except ValueError as error:  # it quotes environment variables
        print_to_stderr(f"error: {one_line(error)}")
        sys.exit(2)
    watch_launcher(os.environ)
    try:
        body(ranks)
    except SweepFailed as error:
        print_to_stderr(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _end(130, ranks)
    except RunStopped as error:
        message = one_line(error)
        if ranks.report(message, message):
            print_to_stderr(message)
        ranks.stay()
        _end(STOPPED, ranks)
    except (RunEnded, NotWritten) as error:
        message = one_line(error)
        reachable = not isinstance(error, WorkerLost) or error.reachable
        if not reachable or ranks.report(message, f"error: {message}"):
            _print_error(message)
        if reachable:
            ranks.stay()
        _end(2 if isinstance(error, InputRefused) else 1, ranks)
    except Exception as error:
        invalid = invalid_input(error)
        if invalid is not None:
            if ranks.report(invalid, f"error: {invalid}", invalid=True):
                _print_error(invalid)
            ranks.stay()
            _end(2, ranks)
        ranks.report(f"{type(error).__name__}: {error}", traceback.format_exc())
        # Torch's hook puts the rank before every line.
        sys.excepthook(type(error), error, error.__traceback__)
        ranks.stay()
        _end(1, ranks)


def _print_error(message: str) -> None:
    print_to_stderr(f"error: {message}")
    if os.environ.get(FULL_ERROR):
        traceback.print_exc()


def _end(code: int, ranks: Ranks) -> NoReturn:
    """End this process after a failure.

    With several ranks it ends without clean-up. Destroying the process group could abort the
    interpreter, which loses the exit code, or wait for a collective that never starts.
    """
    if ranks.world > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
