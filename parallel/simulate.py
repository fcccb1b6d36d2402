"""Predict a step without running it: python -m parallel.simulate [-m [--weak]] [--svg FILE] [--trace FILE] [override …]

    python -m parallel.simulate strategy=one_weird_trick cluster=dgx1 workers=4 trainer.batch_size=512 --svg step.svg
    python -m parallel.simulate -m workers=1,2,4,8 strategy=data_parallel,one_weird_trick cluster=dgx1

prints what the step takes on that cluster and, of each worker, where its time goes and the memory that it needs. The
arguments are those of parallel.train; docs/simulator.md says what is simulated.

    --svg FILE    also draw the timeline
    --trace FILE  also write it for https://ui.perfetto.dev or chrome://tracing
    -m            a row for every combination of values given as a,b,c; speedups over one worker with the same batch
    --weak        trainer.batch_size is that of each worker, so that the global batch grows with the workers

No process is started and no data set opened. Exit code 2 for what cannot be.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from parallel.cli.compose import compose_config, parse_overrides
from parallel.cluster.open import open_cluster
from parallel.config import Config, require
from parallel.prediction.predict import Prediction, graph_of, predict
from parallel.prediction.tables import comparison, show
from parallel.simulator.drawing import draw
from parallel.simulator.trace import bars_of, counts_of, write_trace

FLAGS, FILES = ("-m", "--multirun", "--weak", "--help", "-h"), ("--svg", "--trace")
WIDTH = 160
"""Columns of the console when it is no terminal."""


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    flags: frozenset[str]
    files: dict[str, Path]
    overrides: tuple[str, ...]

    @property
    def sweep(self) -> bool:
        return bool(self.flags & {"-m", "--multirun"})


def read_arguments(arguments: Sequence[str]) -> Arguments:
    """The command line taken apart. Raises `ValueError` for a flag that is not known or goes with others not given."""
    flags, files, overrides = set[str](), dict[str, Path](), list[str]()
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in FILES:
            value = value if equals else next(rest, "")
            require(value not in ("", *FLAGS, *FILES), name, value, "must name the file to write")
            files[name] = Path(value)
        elif argument.startswith("-"):
            require(argument in FLAGS, "flag", argument, f"is not known; there are {', '.join((*FLAGS, *FILES))}")
            flags.add(argument)
        else:
            overrides.append(argument)
    found = Arguments(frozenset(flags), files, tuple(overrides))
    for name, path in files.items():
        require(not found.sweep, name, path, "needs one configuration, not a sweep")
        require(path.parent.is_dir(), name, path, "lies in a folder that does not exist")
    return found


def predict_one(config: Config, weak: bool) -> Prediction:
    """The prediction for one configuration. Raises `ValueError` for what cannot be."""
    workers = 1 if config.strategy.name == "single" else config.workers or 1
    return predict(config, graph_of(config), open_cluster(config.cluster, workers), weak)


def combinations(overrides: Sequence[str]) -> tuple[list[str], list[tuple[str, ...]], list[str]]:
    """What is varied; the values of every combination, the last varying fastest; and what is fixed."""
    parsed = parse_overrides(overrides)
    swept = [o for o in parsed if o.is_sweep_override()]
    values = [[str(value) for value in o.sweep_string_iterator()] for o in swept]
    fixed = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
    return [str(o.key_or_group) for o in swept], list(itertools.product(*values)), fixed


def sweep(overrides: Sequence[str], weak: bool, console: Console) -> bool:
    """Print a row for every combination; whether any of them can be."""
    names, chosen, fixed = combinations(overrides)
    compose_config(fixed)  # what is wrong with the part that all share ends here
    rows: list[tuple[Sequence[str], Prediction | str]] = []
    composed: dict[tuple[str, ...], Config] = {}
    for values in chosen:
        # Composing takes longer than predicting: workers, which are varied most, are put in afterwards.
        own = {name: value for name, value in zip(names, values, strict=True) if name != "workers"}
        key = tuple(f"{name}={value}" for name, value in own.items())
        try:
            if key not in composed:
                composed[key] = compose_config([*fixed, *key])
            config = composed[key]
            if "workers" in names:
                config = dataclasses.replace(config, workers=_count(values[names.index("workers")]))
            rows.append((values, predict_one(config, weak)))
        except ValueError as error:
            rows.append((values, " ".join(str(error).split())))
    others = [i for i, name in enumerate(names) if name != "workers"]  # they have a column of their own
    console.print(comparison([names[i] for i in others], [
        ([values[i] for i in others], values[names.index("workers")] if "workers" in names else "", result)
        for values, result in rows]))
    return any(isinstance(result, Prediction) for _, result in rows)


def _count(value: str) -> int:
    require(value.isdecimal(), "workers", value, "must be a whole number")
    return int(value)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 2 for bad input, after one line on standard error."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code = _run(arguments, console)
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"warning: {message}", file=sys.stderr)
    return code


def _run(arguments: Sequence[str], console: Console) -> int:
    try:
        given = read_arguments(arguments)
        if {"--help", "-h"} & given.flags:
            print((__doc__ or "").rstrip())
            return 0
        weak = "--weak" in given.flags
        if given.sweep:
            return 0 if sweep(given.overrides, weak, console) else 2
        prediction = predict_one(compose_config(given.overrides), weak)
        show(prediction, console)
        title = f"{prediction.label} on {prediction.timeline.cluster.name}, {prediction.timeline.workers} workers"
        for name, path in given.files.items():
            if name == "--svg":
                path.write_text(draw(prediction.timeline, title), encoding="utf-8")
            else:
                write_trace(path, bars_of(prediction.timeline), counts_of(prediction.timeline), title)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
