"""torchrun whose rendezvous listens on one address: `parallel.runtime.communication.bound_rendezvous`.

python -m parallel.cli.torchrun …      for the jobs of a sweep: it ends, and its workers with it, when
                                       the sweep is gone
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from uuid import uuid4

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
from torch.distributed.run import get_args_parser, parse_min_max_nnodes, run

from parallel.cli.process_tree import end_with_parent, stops_ignored, stops_raise
from parallel.config.stderr import print_to_stderr
from parallel.results.command_line import COMMAND, typed_command
from parallel.runtime.communication.bound_rendezvous import BACKEND, create_handler
from parallel.runtime.failure.launcher import LAUNCHER, launcher_text

DEFAULT_PORT = 29500
"""Port of the store of a run on several hosts; on one host the kernel chooses a free port."""
INVALID_INPUT = 2
"""Exit code of a worker that rejects its input."""


def torchrun(arguments: Sequence[str] | None = None) -> None:
    """Run torchrun with its own arguments, and the bound rendezvous in place of the static one.

    If the first worker to fail rejected its input, this process ends with the same exit code; after
    any other failure with 1, as torchrun does. Another rendezvous is one sentence and exit code 2.
    """
    try:
        options = _options(arguments)
    except ValueError as error:
        print_to_stderr(f"error: {error}")
        raise SystemExit(INVALID_INPUT) from None
    os.environ.setdefault(COMMAND, typed_command(sys.orig_argv))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does for several workers, with a warning
    os.environ[LAUNCHER] = launcher_text(options.rdzv_id)
    rendezvous_handler_registry.register(BACKEND, create_handler)
    with _log_folder(options):
        try:
            record(run)(options)
        except ChildFailedError as error:
            _, first = error.get_first_failure()
            if first.exitcode == INVALID_INPUT:
                raise SystemExit(INVALID_INPUT) from None
            raise


def _options(arguments: Sequence[str] | None) -> Namespace:
    """Return torchrun's options with the bound rendezvous. Raises `ValueError` for another one."""
    parser = get_args_parser()
    if "PET_MASTER_PORT" not in os.environ:
        parser.set_defaults(master_port=0)
    options = parser.parse_args(arguments)
    if options.standalone or options.rdzv_backend != "static":
        stated = "--standalone" if options.standalone else f"--rdzv-backend={options.rdzv_backend}"
        raise ValueError(
            f"{stated} must be left out: python -m parallel.torchrun has one rendezvous, its own; torchrun has others, "
            "which execute what the network sends (docs/security.md)"
        )
    _, hosts = parse_min_max_nnodes(options.nnodes)
    port = options.master_port or (0 if hosts == 1 else DEFAULT_PORT)
    if hosts == 1 and options.rdzv_id == "none":
        options.rdzv_id = f"run-{uuid4()}"  # tells its processes from those of other runs
    settings = [f"rank={options.node_rank}", *filter(None, [options.rdzv_conf])]
    options.rdzv_backend, options.rdzv_conf = BACKEND, ",".join(settings)
    options.rdzv_endpoint = options.rdzv_endpoint or f"{options.master_addr}:{port}"
    options.node_rank = 0  # stated above; torchrun warns that other rendezvous ignore it
    return options


@contextlib.contextmanager
def _log_folder(options: Namespace) -> Iterator[None]:
    """Have the workers' errors in a folder that is removed at the end; torchrun would leave it.

    The user's own folder stays, and so does torchrun's if it has the workers' output.
    """
    if options.log_dir or options.logs_specs or options.redirects != "0" or options.tee != "0":
        yield
        return
    with stops_raise():  # until torchrun has handlers of its own, which raise as well
        options.log_dir = tempfile.mkdtemp(prefix="parallel_torchrun_")
        try:
            yield
        finally:
            with stops_ignored():
                shutil.rmtree(options.log_dir)


if __name__ == "__main__":
    end_with_parent()
    torchrun()
