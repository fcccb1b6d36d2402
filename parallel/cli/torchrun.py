"""torchrun whose rendezvous listens on one address: `parallel.runtime.communication.bound_rendezvous`.

python -m parallel.cli.torchrun …      for the jobs of a sweep: it ends, and its workers with it, when
                                       the sweep is gone
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from uuid import uuid4

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
from torch.distributed.run import get_args_parser, parse_min_max_nnodes, run

from parallel.cli.process_tree import end_with_parent
from parallel.results.command_line import COMMAND, typed_command
from parallel.runtime.communication.bound_rendezvous import BACKEND, create_handler

DEFAULT_PORT = 29500
"""Port of the store of a run on several hosts; on one host the kernel chooses a free port."""
INVALID_INPUT = 2
"""Exit code of a worker that rejects its input."""


def torchrun(arguments: Sequence[str] | None = None) -> None:
    """Run torchrun with its own arguments, and the bound rendezvous in place of the static one.

    If the first worker to fail rejected its input, this process ends with the same exit code; after
    any other failure with 1, as torchrun does.
    """
    try:
        _run(arguments)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode == INVALID_INPUT:
            raise SystemExit(INVALID_INPUT) from None
        raise


@record
def _run(arguments: Sequence[str] | None) -> None:
    os.environ.setdefault(COMMAND, typed_command(sys.orig_argv))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does for several workers, with a warning
    parser = get_args_parser()
    if "PET_MASTER_PORT" not in os.environ:
        parser.set_defaults(master_port=0)
    options = parser.parse_args(arguments)
    if options.rdzv_backend == "static" and not options.standalone:
        rendezvous_handler_registry.register(BACKEND, create_handler)
        _, hosts = parse_min_max_nnodes(options.nnodes)
        port = options.master_port or (0 if hosts == 1 else DEFAULT_PORT)
        if hosts == 1 and options.rdzv_id == "none":
            options.rdzv_id = f"run-{uuid4()}"  # tells its processes from those of other runs
        settings = [f"rank={options.node_rank}", *filter(None, [options.rdzv_conf])]
        options.rdzv_backend, options.rdzv_conf = BACKEND, ",".join(settings)
        options.rdzv_endpoint = options.rdzv_endpoint or f"{options.master_addr}:{port}"
        options.node_rank = 0  # stated above; torchrun warns that other rendezvous ignore it
    run(options)


if __name__ == "__main__":
    end_with_parent()
    torchrun()
