"""Check this project on a machine with GPUs, and write a page to send back.

    python scripts/gpu_check.py                    all sections, at most 30 minutes: writes gpu_check.md
    python scripts/gpu_check.py --only speed,profile --minutes 10
    python scripts/gpu_check.py --device cpu       the same code with tiny sizes: tries the check itself

Sections: machine (GPUs, clocks, versions), tests (those that need a GPU), parity (every strategy against
plain PyTorch in float64), speed (one worker against torchvision's AlexNet, and as a share of the
roofline), prediction (a calibration, and predicted beside measured steps), profile (launches, gaps,
synchronisations, kernels). Each runs in a process of its own with a time limit; the page is written
after each of them and keeps what a section wrote before it failed. Exit code 1 if a section failed or
had no time, 2 for wrong arguments. A missed target of speed or of predictions is stated on the page.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import torch
from gpu_sections import budget
from gpu_sections.page import Outcome, page
from gpu_sections.section import MISSED_CODE, ROOT, Ending, Run, Setting, ending_of

from parallel.cli.process_tree import Tree, stops_raise

END_S = 15.0
"""Time that a section's processes have to end after SIGTERM."""


def run_section(name: str, device: str, limit_s: float) -> Outcome:
    """Run a section in a process of its own, and end it with all that it started at its limit."""
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        text, log = Path(folder) / "page.md", Path(folder) / "log.txt"
        text.touch()
        command = [sys.executable, str(Path(__file__).resolve()), "--device", device]
        command += ["--section", name, "--folder", folder, "--limit", str(limit_s)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        begin, tree = time.monotonic(), Tree(END_S)
        with open(log, "wb") as output:
            try:
                ending = ending_of(tree.start(command, environment, output.fileno()).wait(limit_s))
            except subprocess.TimeoutExpired:
                ending = Ending.TIME_OUT
            finally:
                tree.end()
        seconds = time.monotonic() - begin
        read = (path.read_text(encoding="utf-8", errors="replace") for path in (text, log))
        return Outcome(name, ending, seconds, limit_s, *read)


def check(order: list[str], device: str, minutes: float, out: Path) -> bool:
    """Run the sections and write the page after each; return whether all of them ended well."""
    begin, outcomes = time.monotonic(), list[Outcome]()
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    command = shlex.join(["python", *sys.argv])
    for name in order:
        left_s = 60 * minutes - END_S - (time.monotonic() - begin)
        limit_s = budget.limit_s(name, order, left_s)
        print(f"{name}: at most {limit_s:.0f} s", file=sys.stderr, flush=True)
        skipped = Outcome(name, Ending.SKIPPED, 0.0, limit_s, "")
        outcomes.append(run_section(name, device, limit_s) if limit_s else skipped)
        out.write_text(page(command, device, started, outcomes), encoding="utf-8")
        print(f"{name}: {outcomes[-1].ending.value} after {outcomes[-1].seconds:.0f} s", file=sys.stderr)
    return all(outcome.ending.ok for outcome in outcomes)


def run_here(name: str, setting: Setting) -> int:
    """Run a section in this process and return its exit code."""
    run: Run = importlib.import_module(f"gpu_sections.{name}").run
    return {Ending.PASSED: 0, Ending.MISSED: MISSED_CODE}.get(run(setting), 1)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help=f"some of {','.join(budget.WEIGHTS)}; default: all")
    parser.add_argument("--minutes", type=float, default=30.0, help="time for everything (default: 30)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.md"), help="the page")
    for name in ("section", "folder", "limit"):  # of a section's own process
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda needs a GPU, and torch sees none; --device cpu tries the check itself")
    if arguments.section:
        folder = Path(arguments.folder)
        limit_s, work = float(arguments.limit), folder / "work"
        work.mkdir()
        setting = Setting(arguments.device, folder / "page.md", work, limit_s, time.monotonic())
        return run_here(arguments.section, setting)
    if not 0 < arguments.minutes <= 24 * 60:
        parser.error(f"--minutes={arguments.minutes:g} must be above 0 and at most 1440")
    try:
        order = budget.chosen(arguments.only)
    except ValueError as error:
        parser.error(str(error))
    with stops_raise():
        ok = check(order, arguments.device, arguments.minutes, arguments.out)
    print(f"page: {arguments.out}", file=sys.stderr)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
