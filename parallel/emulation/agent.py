"""torchrun on one host of an emulated cluster.

    python -m parallel.emulation.agent …      the arguments are those of torchrun

Standard input is a pipe from the command that started all agents: a byte in it is the number of a
signal for torchrun, and its end, when that command is gone, stands for SIGTERM.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading


def obey() -> None:
    """Start the thread that turns what it reads from standard input into signals."""
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # what torchrun starts does not read from the pipe
    os.close(nothing)

    def read() -> None:
        while numbers := os.read(pipe, 16):
            for number in numbers:
                os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=read, name="obey", daemon=True).start()


if __name__ == "__main__":
    obey()
    runpy.run_module("parallel.torchrun", run_name="__main__", alter_sys=True)
