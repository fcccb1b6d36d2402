"""Hydra's application around a training: arguments, run directory, sweeps.

Under torchrun every rank composes the configuration itself. Only rank 0 runs Hydra's application,
which sets up logging and stores a copy of the configuration. Rank 0 also chooses the run directory
and sends it to the other ranks, which write nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from parallel.cli.agreement import agree
from parallel.cli.compose import (
    CONF,
    VERSION_BASE,
    compose_node,
    launcher_lists,
    parse_overrides,
    quote,
    sentence,
    shared_overrides,
    sweep_overrides,
    to_config,
)
from parallel.cli.hydra_private import parse_arguments
from parallel.cli.ranked import run_ranked
from parallel.cli.ranks import Ranks
from parallel.cli.schema import register_schema
from parallel.cli.slurm_ranks import in_slurm
from parallel.cli.sweep import claim_folder, finished, numbered, set_aside, started_module
from parallel.cli.swept_options import refuse_options_of_some
from parallel.config import Config, PeerConfig, require
from parallel.config.stderr import print_to_stderr
from parallel.results.record_files import RECORD
from parallel.results.run_lock import locked
from parallel.strategies import FromFile

OTHER_LAUNCHERS = ("joblib", "submitit_local", "ray", "ray_aws", "rq")
"""Launchers of Hydra's plugins."""

Train = Callable[[Config, Path], None]


def main(train: Train) -> None:
    """Run `train(config, run_dir)` as configured on the command line, and exit with its exit code.

    Meanwhile worker 0 holds the lock of the run directory (`run_lock.py`).
    """
    run_ranked(lambda ranks: _application(train, ranks))


def _application(train: Train, ranks: Ranks) -> None:
    arguments = sys.argv[1:]
    args = _parse(arguments, ranks)
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        if ranks.rank == 0:
            _run_hydra(lambda node: None, arguments)
        return
    parsed = parse_overrides(args.overrides)
    if args.multirun or any(o.key_or_group == "hydra.mode" and o.value() == "MULTIRUN" for o in parsed):
        if ranks.launched:
            settings = (("hydra/launcher", "torchrun"), ("workers", ranks.world))
            needed = [
                f"{key}={value}" for key, value in settings if all(o.key_or_group != key for o in parsed)
            ]
            starter = "srun" if in_slurm(ranks.environment) else "torchrun"
            raise ValueError(
                f"a sweep under {starter} is not possible, because every rank would run it: "
                f"use `python -m {started_module()} {shlex.join([*arguments, *needed])}`"
            )
        refuse_launchers(parsed, arguments)
        arguments = launcher_lists(arguments, parsed)
        refuse_options_of_some(parsed)
        # Hydra composes the shared configuration before any job's, so errors in it are reported here.
        shared = compose_node(shared_overrides(parsed))
        _run_hydra(partial(_job, train, ranks, set()), [*arguments, *sweep_overrides(parsed, shared)])
        return
    node = compose_node(args.overrides)
    config = fit_world(
        to_config(node),
        ranks.world,
        ranks.launched,
        restarted=ranks.attempt > 0,
        slurm=in_slurm(ranks.environment),
    )
    agree(ranks, config)
    refuse_repeats(config)
    explicit = any(o.key_or_group == "hydra.run.dir" for o in parsed)
    line = one_worker_line(config, arguments, in_slurm(ranks.environment))
    with contextlib.ExitStack() as held:

        def open_run_dir() -> str:
            run_dir = _run_dir(Path(node.hydra.run.dir), explicit, ranks)
            try:
                held.enter_context(locked(run_dir))
                if line is not None and not ranks.launched:
                    print(line, flush=True)
                _run_hydra(lambda node: None, [*arguments, f"hydra.run.dir={quote(str(run_dir))}"])
            except OSError as error:
                raise ValueError(f"hydra.run.dir={run_dir} can't be written: {error.strerror}") from error
            return str(run_dir)

        train(config, Path(ranks.share("run_dir", open_run_dir)))


def refuse_launchers(parsed: Sequence[Override], arguments: Sequence[str]) -> None:
    """Raise `ValueError` for a launcher of a Hydra plugin, installed or not, with the command to use.

    They start one process for a job, whatever its workers, and let jobs share cores without a note
    in their records.
    """
    for override in parsed:
        if override.key_or_group == "hydra/launcher" and override.value() in OTHER_LAUNCHERS:
            others = [
                argument
                for argument in arguments
                if not argument.startswith(("hydra.launcher.", "hydra/launcher="))
            ]
            raise ValueError(
                f"hydra/launcher={override.value()} is not supported, because it starts one process for each job: use "
                f"`python -m {started_module()} {shlex.join(others)} hydra/launcher=torchrun "
                "hydra.launcher.jobs=2`, which runs two jobs side by side, each on cores or GPUs of its own"
            )


def _run_dir(path: Path, explicit: bool, ranks: Ranks) -> Path:
    """Return this run's directory: after a restart by torchrun that of the attempt before."""
    if explicit or not ranks.restartable:
        claimed = claim_run_dir(path, explicit)
        if not explicit and ranks.environment.get("SLURM_RESTART_COUNT", "0") != "0":
            print_to_stderr(
                f"warning: Slurm started this job again, and the run begins anew in {claimed}: with "
                "hydra.run.dir=… it would go on in its folder"
            )
        return claimed
    before = ranks.recall("run_dir")
    if before is not None:
        return claim_run_dir(Path(before), explicit=True)
    if ranks.attempt > 0:
        raise ValueError(
            "torchrun started the run again on a new store, which does not know its run directory: "
            "state it with hydra.run.dir=… to go on after the loss of a host"
        )
    claimed = claim_run_dir(path, explicit)
    ranks.remember("run_dir", str(claimed))
    return claimed


def _job(train: Train, ranks: Ranks, folders: set[Path], node: DictConfig) -> None:
    """Run one job of a sweep in this process (Hydra's basic launcher)."""
    config = fit_world(to_config(node), ranks.world, ranks.launched, slurm=in_slurm(ranks.environment))
    refuse_repeats(config)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    claim_folder(run_dir, folders)
    if finished(run_dir, config):
        print(f"skipped: {run_dir} is already finished", flush=True)
        return
    if set_aside(run_dir, Path(HydraConfig.get().sweep.dir).absolute(), config) is not None:
        run_dir.mkdir(parents=True)
    if _takes_more_workers(config):
        print(
            f"strategy={config.strategy.name} runs on one worker, since the sweep has no launcher; for two, add: "
            "hydra/launcher=torchrun workers=2",
            flush=True,
        )
    with locked(run_dir):
        train(config, run_dir)


def refuse_repeats(config: Config) -> None:
    """Raise `ValueError` if a single run is to be repeated: only launchers of a sweep do that."""
    require(
        config.repeats == 1,
        "repeats",
        config.repeats,
        "needs a sweep with a launcher: add -m and hydra/launcher=torchrun",
    )


def one_worker_line(config: Config, arguments: Sequence[str], slurm: bool) -> str | None:
    """Return the line for a run that plain python started on one worker, with what would start two.

    None for a strategy that has one worker, or the workers of its plan file.
    """
    if not _takes_more_workers(config):
        return None
    start = "srun --ntasks 2 python" if slurm else "python -m parallel.torchrun --nproc-per-node 2"
    words = [word for word in arguments if not word.startswith("workers=")]
    return (
        f"strategy={config.strategy.name} runs on one worker, since python starts one process; for two: "
        f"{start} -m parallel.train {shlex.join(words)}"
    )


def _takes_more_workers(config: Config) -> bool:
    return config.strategy.fixed_workers is None and not isinstance(config.strategy, FromFile)


def fit_world(
    config: Config,
    world: int,
    launched: bool,
    *,
    restarted: bool = False,
    sweeps: bool = True,
    slurm: bool = False,
) -> Config:
    """Return `config` with `workers` set.

    A run that torchrun `restarted` may have lost workers, and goes on with those that are left.
    Raises `ValueError` if the plan needs another number of processes than `world`, or the strategy a
    package that is not installed; `sweeps`: whether
    the command can run a sweep, which the message then suggests; `slurm`: whether it is a job of
    Slurm, in which srun starts the processes.
    """
    if restarted:
        config = dataclasses.replace(config, workers=None)
    wanted = config.worker_count(world)
    if wanted != world:
        fixed = config.strategy.fixed_workers is not None
        what = f"strategy={config.strategy.name}" if fixed else f"workers={wanted}"
        processes = f"{wanted} process{'es' * (wanted > 1)}"
        if slurm:
            started = f"srun started {world}" if launched else "python starts one"
            raise ValueError(
                f"{what} needs {processes}, but {started}: use `srun --ntasks {wanted} python "
                f"-m {started_module()} …`"
            )
        if launched:
            raise ValueError(
                f"{what} needs {processes}, but torchrun started {world}: "
                f"--nnodes times --nproc-per-node must be {wanted}"
            )
        raise ValueError(
            f"{what} needs {processes}, but python starts one: use `python -m parallel.torchrun "
            f"--nproc-per-node {wanted} -m {started_module()} …`"
            + ", or a sweep: `-m … hydra/launcher=torchrun`"
            * sweeps
        )
    if isinstance(config.strategy, PeerConfig):
        config.strategy.require_installed()
    return dataclasses.replace(config, workers=wanted)


def claim_run_dir(path: Path, explicit: bool) -> Path:
    """Create the run directory and return its absolute path.

    If it exists and is not `explicit` (stated by the user), a number is appended: two runs may
    start within one second. Raises `ValueError` if it cannot be created, or if an explicit one
    contains a finished run.
    """
    path = path.absolute()
    try:
        if explicit:
            path.mkdir(parents=True, exist_ok=True)
            if (path / RECORD).exists():
                raise ValueError(
                    f"hydra.run.dir={path} contains a finished run: choose another folder, or delete it"
                )
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        for candidate in numbered(path):
            with contextlib.suppress(FileExistsError):
                candidate.mkdir()
                return candidate
    except OSError as error:
        raise ValueError(f"hydra.run.dir={path} cannot be created: {error.strerror}") from error
    raise AssertionError("unreachable: there is always another number")


def _parse(arguments: Sequence[str], ranks: Ranks) -> Namespace:
    """Return Hydra's arguments. Raises `ValueError` for one that replaces the configuration in
    conf/."""
    silence = contextlib.redirect_stderr(io.StringIO()) if ranks.rank > 0 else contextlib.nullcontext()
    with silence:  # argparse would print its usage on every rank
        args = parse_arguments(arguments)
    for name in ("config_name", "config_path", "config_dir", "experimental_rerun"):
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')}={getattr(args, name)} is not supported: the configuration "
                "is in conf/; hydra.searchpath=[file:///folder] adds a folder of your own"
            )
    return args


def _run_hydra(task: Callable[[DictConfig], None], arguments: Sequence[str]) -> None:
    """Run Hydra's application with `arguments`. Raises Hydra's errors as `ValueError` with one
    sentence."""
    register_schema()
    decorated = hydra.main(version_base=VERSION_BASE, config_path=str(CONF), config_name="config")(task)
    try:
        with _arguments(arguments), _environment("HYDRA_FULL_ERROR", "1"):  # otherwise Hydra prints and exits
            decorated()
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(sentence(error)) from error


@contextlib.contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
