"""Run a module in which some workers get a share of a core, as on a cluster of unequal machines.

    python -m parallel.torchrun --nproc-per-node 2 scripts/hold.py --workers 1 --share 50 \\
        -m parallel.calibrate workers=2

Each of the named workers moves its process into a control group of its own, as emulated hosts do
(`parallel.emulation.processors`). Needs root. Another process removes the group when the worker has
ended.
"""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys

from parallel.emulation.processors import Processors


def hold(share: float) -> None:
    """Give this process, with all its threads to come, a share of a core in per cent."""
    if not 0 < share <= 100:
        raise SystemExit(f"--share={share:g} must be above 0 and at most 100")
    processors = Processors.find(f"held-{os.getpid()}")
    if processors is None:
        raise SystemExit(f"--share={share:g} needs root and the control group cpu")
    group = processors.group(0)
    try:
        processors.make(1)
        processors.limit(0, share / 100)
        # A group with processes cannot be removed, and this one may be killed: another process waits.
        ended = f"while kill -0 {os.getpid()}; do sleep 0.2; done"
        removed = f"for i in 1 2 3 4 5 6 7 8 9; do rmdir {group} {processors.folder} && exit; sleep 0.2; done"
        subprocess.Popen(
            ["sh", "-c", f"{ended}; {removed}"],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise SystemExit(f"--share={share:g} cannot be given: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", required=True, help="ranks of the held workers")
    parser.add_argument("--share", type=float, required=True, help="their share of a core, in per cent")
    parser.add_argument("-m", dest="module", required=True, help="the module that all workers run")
    options, arguments = parser.parse_known_args()
    if int(os.environ.get("RANK", "-1")) in options.workers:
        hold(options.share)
    sys.argv = [options.module, *arguments]
    runpy.run_module(options.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
