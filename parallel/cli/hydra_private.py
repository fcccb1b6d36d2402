"""Private interfaces of Hydra, each with the reason why no public one serves.

`tests/unit/test_hydra_private.py` fails when one of them disappears or changes.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """Return Hydra's parsed command line: its flags, and the remaining arguments as `overrides`.

    Exits with code 2 after argparse's message for an invalid flag. `hydra.main`, the public entry,
    parses only `sys.argv`, and only to run the application at once; the flags must be known before,
    to tell a sweep from a run.
    """
    return get_args_parser().parse_args(arguments)


def forget_submitit() -> None:
    """Remove the configuration `hydra/launcher=submitit_slurm` that Hydra's submitit plugin stores, if
    it is installed.

    Hydra would check ours in conf/, which has the same name, against it. There is no public way to
    remove one, nor to switch that check off.
    """
    Plugins.instance()  # imports all plugins, which store their configurations
    launchers = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    launchers.pop("submitit_slurm.yaml", None)
