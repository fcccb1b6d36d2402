"""Private interfaces of Hydra, each with the reason why no public one serves.

`tests/unit/test_hydra_private.py` fails when one of them disappears or changes.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """Return Hydra's parsed command line: its flags, and the remaining arguments as `overrides`.

    Exits with code 2 after argparse's message for an invalid flag. `hydra.main`, the public entry,
    parses only `sys.argv`, and only to run the application at once; the flags must be known before,
    to tell a sweep from a run.
    """
    return get_args_parser().parse_args(arguments)
