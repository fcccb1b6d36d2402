"""Break the code on purpose, one mistake at a time, and see whether `parallel.verify` finds it.

    python -m scripts.mutations [--only TEXT]

Each mutation of `scripts.mutation_list` is applied to a copy of the tree, on which the default plans of
`parallel.verify` run for two steps, with random delays, up to the first difference. The tree as it is
must pass first. Prints a Markdown table; exit code 1 if a mutation was missed. Takes about half a minute
per mutation on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.mutation_list import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 600
VERIFY = """
import sys
from parallel.runtime.communication.chaos import Chaos
from parallel.verification.verify import verify_defaults

if __name__ == "__main__":
    for plan, found in verify_defaults(2, Chaos()):
        if not found.ok:
            sys.exit(f"{plan.label}: {found.first or found.worst}")
"""
"""A script of its own, not `python -m parallel.verify`: it stops at the first plan that differs."""


def apply(mutation: Mutation, tree: Path) -> None:
    """Change the file in `tree`. Raises `ValueError` unless the old text is there exactly once."""
    file = tree / mutation.file
    text = file.read_text(encoding="utf-8")
    if (times := text.count(mutation.old)) != 1:
        raise ValueError(f"{mutation.breaks}: {mutation.file} has {mutation.old.strip()!r} {times} times, not once")
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")


def first_failure(mutation: Mutation | None) -> str | None:
    """Return how verification of the changed tree ends, None if it passes."""
    with tempfile.TemporaryDirectory(prefix="mutation_") as folder:
        tree = Path(folder)
        for part in ("parallel", "conf"):
            shutil.copytree(ROOT / part, tree / part)
        (tree / "verify_defaults.py").write_text(VERIFY, encoding="utf-8")
        if mutation is not None:
            apply(mutation, tree)
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        try:
            ended = subprocess.run([sys.executable, "verify_defaults.py"], cwd=tree, env=environment, text=True,
                                   timeout=TIMEOUT_S, capture_output=True)
        except subprocess.TimeoutExpired:
            return f"no end after {TIMEOUT_S} s"
    if ended.returncode == 0:
        return None
    lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line or "WorkerLost: " in line]
    return errors[-1] if "Traceback (most recent call last):" in lines and errors else lines[-1]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose description or file contains this text")
    only = parser.parse_args().only
    chosen = [mutation for mutation in MUTATIONS if only in mutation.breaks or only in mutation.file]
    with tempfile.TemporaryDirectory() as folder:
        for mutation in MUTATIONS:  # all of them, before the first of many minutes
            copy = Path(folder) / mutation.file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / mutation.file, copy)
            apply(mutation, Path(folder))
    if (failure := first_failure(None)) is not None:
        sys.exit(f"error: the tree as it is does not pass: {failure}")
    print("| mutation | file | found by |\n|---|---|---|", flush=True)
    missed = 0
    begin = time.monotonic()
    for mutation in chosen:
        failure = first_failure(mutation)
        missed += failure is None
        found = "**missed**" if failure is None else failure.replace("|", "\\|")
        print(f"| {mutation.breaks} | {mutation.file.removeprefix('parallel/')} | {found} |", flush=True)
    print(f"\n{len(chosen) - missed} of {len(chosen)} mutations found, in {time.monotonic() - begin:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
