"""The console scripts: `parallel-train …` is `python -m parallel.train …`."""

from __future__ import annotations

import runpy
import sys

from parallel.results.command_line import script_module


def main() -> None:
    """Run the module of the script that started this process."""
    module = script_module(sys.argv[0])
    if module is None:
        raise ValueError(f"{sys.argv[0]} is not a script of this project: they are named parallel-train, …")
    runpy.run_module(module, run_name="__main__")
