"""Workers that this worker's launcher started, too, and that are stopped (SIGSTOP): they cannot end by themselves.

torchrun asks the workers of a failed run to end and waits 30 seconds for one that does not hear it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

SAME = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
"""What the environments of one launcher's workers have in common, and those of another's have not."""


def kill_stopped() -> None:
    """Kill the stopped workers of this launcher on this machine. Linux only; elsewhere the launcher must do it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    wanted = {f"{name}={os.environ.get(name)}".encode() for name in SAME}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if state != "T" or int(parent) != os.getppid():
                continue
            environment = set((folder / "environ").read_bytes().split(b"\0"))
        except OSError:
            continue  # ended meanwhile, or another user's
        if wanted <= environment and any(entry.startswith(b"RANK=") for entry in environment):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(folder.name), signal.SIGKILL)
