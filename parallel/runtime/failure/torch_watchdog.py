"""torch's own watchdog of NCCL, told not to act before ours.

By default it ends the process some time after an error or a timeout of NCCL (SIGABRT), with a message
that names a collective. Its timeouts count the time for which the whole job is stopped. The variables
are read when a communicator is created. Source: ProcessGroupNCCL.hpp and .cpp of torch.
"""

from __future__ import annotations

from collections.abc import MutableMapping

ERROR_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
QUIET = {
    ERROR_HANDLING: "0",  # it notes an error, which the watch asks for, and does not end the process
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",  # its thread ends at an error of the device, and not the process
    "TORCH_NCCL_ENABLE_MONITORING": "0",  # a driver call that blocks its thread does not end the process
    # A request to dump stays in the launcher's store, where workers that torchrun starts again find it.
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    # After an error it sleeps four times this long, with a lock that the next collective needs.
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "250",
}
"""Variables and their values."""
LAUNCHER_SETS = {ERROR_HANDLING: "1"}
"""Variables that torchrun sets for its workers if they are not set, and so no wish of the user."""


def quiet_watchdog(environment: MutableMapping[str, str]) -> None:
    """Set the variables that the user has not set. Call it before a communicator is created."""
    launched = "TORCHELASTIC_RUN_ID" in environment
    for name, value in QUIET.items():
        if launched and name in LAUNCHER_SETS and environment.get(name) == LAUNCHER_SETS[name]:
            environment[name] = value
        environment.setdefault(name, value)
