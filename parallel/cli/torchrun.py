"""torchrun for the jobs of a sweep: ends, and its workers with it, when the sweep is gone.

python -m parallel.cli.torchrun …      the arguments are those of torchrun
"""

from __future__ import annotations

import runpy

from parallel.cli.process_tree import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
