"""Section `tests`: the tests that need a GPU, which skip elsewhere."""

from __future__ import annotations

from gpu_sections.section import Ending, Setting, code_block, run_command

ON_CPU = ("tests/unit/test_device_flags.py",)
"""On a CPU all of them skip: a file shows that they are found."""


def run(setting: Setting) -> Ending:
    """Run them; every failure is named on the page."""
    options = ("-m", "pytest", "-m", "gpu", "-v", "-rfE", "--tb=short", "-p", "no:cacheprovider")
    done = run_command(setting, *options, *(ON_CPU if setting.tiny else ()))
    shown = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    ends = done.stdout.rstrip().splitlines()[-1:]
    setting.write(*code_block("\n".join([*shown, *ends])))
    return Ending.PASSED if done.returncode == 0 else Ending.FAILED
