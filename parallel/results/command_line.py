"""The command that a record names: what was typed, or what runs one job of a sweep again.

The processes of a run were started by torchrun, with other arguments than were typed. So whoever
starts torchrun sets the environment variable `COMMAND`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

COMMAND = "PARALLEL_COMMAND"
"""Environment variable with the command, quoted for a shell."""
SCRIPT = re.compile(r"parallel-(\w+)(?:\.exe|-script\.py)?")
"""Name of a console script, on Windows with an ending."""


def recorded_command(environment: Mapping[str, str], arguments: Sequence[str]) -> str:
    """Return the command for the record of a process that has these arguments (`sys.orig_argv`)."""
    return environment.get(COMMAND) or typed_command(arguments)


def typed_command(arguments: Sequence[str]) -> str:
    """Return a process's arguments as they were typed.

    Python and console scripts without their folders: the shell finds them by their names.
    """
    program, *rest = arguments
    if rest and script_module(rest[0]) is not None:
        return shlex.join([Path(rest[0]).name, *rest[1:]])
    name = Path(program).name
    return shlex.join([name if name.startswith("python") else program, *rest])


def script_module(path: str) -> str | None:
    """Return the module that the console script at `path` runs, or None if it is no such script."""
    name = SCRIPT.fullmatch(Path(path).name)
    return None if name is None else f"parallel.{name[1]}"
