"""Which configuration, how many workers, which strategy: python -m parallel.recommend [key=value …] [override …]

    python -m parallel.recommend experiment=imagenet clusters=two_p100,dgx1,h100 workers=1,2,4,8 epoch_s=600
    python -m parallel.recommend data=tiny_imagenet clusters=dgx1,mine.yaml workers=1,2,4,8 --html scaling.html

predicts an epoch for every combination, prints the best strategy for each cluster and number of workers, what cannot be
and why, and recommends: with `epoch_s`, on each cluster the fewest workers that reach it; without, the fastest and the
cheapest in workers · seconds. The workload is given as to parallel.train (model, data, trainer …), and

    clusters=a,b,c        files of conf/cluster/ by name, or cluster files (.yaml); all of conf/cluster/ unless given
    workers=1,2,4         1,2,4,8 unless given; a cluster that says what lies between its nodes grows
    strategies=a,b        single, data_parallel, "one_weird_trick a", … searched; a first word means all of its kind;
                          all unless given
    batch_sizes=128,256   instead of trainer.batch_size; a larger batch trains differently
    epoch_s=600           seconds that an epoch may take, validation not counted

    --all        print every combination, not only the best strategy of each
    --weak       the batch size is that of each worker
    --html FILE  write scaling curves and all combinations as a page

No process is started and no data set opened. Exit code 2 for what cannot be.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from parallel.cli.compose import CONF, compose_config, quote
from parallel.config import Config, require
from parallel.prediction.recommendation.choose import choose
from parallel.prediction.recommendation.options import STRATEGIES, Question, options
from parallel.prediction.recommendation.page import page, show

KEYS = ("clusters", "workers", "strategies", "batch_sizes", "epoch_s")
OTHERS = {"cluster": "clusters", "strategy": "strategies"}
"""What parallel.train calls it, and what it is here."""
FLAGS = ("--all", "--weak", "--html", "--help", "-h")
WIDTH = 180
"""Columns of the console when it is no terminal."""


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    clusters: tuple[str, ...]
    workers: tuple[int, ...]
    strategies: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    """None given: as configured."""
    epoch_s: float | None
    flags: frozenset[str]
    html: Path | None
    overrides: tuple[str, ...]


def read_arguments(arguments: Sequence[str]) -> Arguments:
    """The command line taken apart. Raises `ValueError` for a value that cannot be."""
    given, flags, overrides, html = dict[str, str](), set[str](), list[str](), None
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        if key == "--html":
            value = value if equals else next(rest, "")
            require(value not in ("", *FLAGS), key, value, "must name the file to write")
            html = Path(value)
            require(html.parent.is_dir(), key, html, "lies in a folder that does not exist")
        elif argument.startswith("-"):
            require(argument in FLAGS, "flag", argument, f"is not known; there are {', '.join(FLAGS)}")
            flags.add(argument)
        elif equals and key in KEYS:
            require(key not in given, key, value, f"is given twice; the first was {given.get(key)}")
            given[key] = value
        else:
            require(key not in OTHERS, key, value, f"is chosen here: give {OTHERS.get(key)}=… the ones to choose from")
            overrides.append(argument)
    return Arguments(
        clusters=tuple(_words("clusters", given["clusters"])) if "clusters" in given else written_clusters(),
        workers=tuple(_counts("workers", given.get("workers", "1,2,4,8"))),
        strategies=tuple(_strategies(given["strategies"]) if "strategies" in given else STRATEGIES),
        batch_sizes=tuple(_counts("batch_sizes", given["batch_sizes"])) if "batch_sizes" in given else (),
        epoch_s=_seconds(given["epoch_s"]) if "epoch_s" in given else None,
        flags=frozenset(flags), html=html, overrides=tuple(overrides),
    )


def written_clusters() -> tuple[str, ...]:
    """The files of conf/cluster/ that say what a cluster is; `local` is whatever was calibrated here."""
    read = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CONF / "cluster").glob("*.yaml")}
    return tuple(sorted(name for name, values in read.items() if values.get("hardware")))


def _words(name: str, value: str) -> list[str]:
    words = [word.strip() for word in value.strip("[]").split(",")]
    require(all(words), name, value, "must be words with commas between them")
    return list(dict.fromkeys(words))


def _counts(name: str, value: str) -> list[int]:
    words = _words(name, value)
    for word in words:
        require(word.isdecimal() and int(word) >= 1, name, word, "must be a whole number, at least 1")
    return sorted({int(word) for word in words})


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    require(0 < seconds < float("inf"), "epoch_s", value, "must be a positive number of seconds")
    return seconds


def _strategies(value: str) -> list[str]:
    chosen: list[str] = []
    for word in _words("strategies", value):
        found = [label for label in STRATEGIES if word in (label, label.split()[0])]
        require(bool(found), "strategies", word, f"is not known; there are {', '.join(STRATEGIES)}")
        chosen += found
    return list(dict.fromkeys(chosen))


def configs(given: Arguments) -> dict[str, Config]:
    """The configuration with each cluster, by its name. Raises `ValueError` for a cluster that cannot be found."""
    found = {}
    for cluster in given.clusters:
        file = cluster.endswith((".yaml", ".yml"))
        require(not file or Path(cluster).is_file(), "clusters", cluster, "is not a file")
        own = f"cluster.file={quote(cluster)}" if file else f"cluster={cluster}"
        found[Path(cluster).stem if file else cluster] = compose_config([*given.overrides, own])
    require(len(found) == len(given.clusters), "clusters", ",".join(given.clusters), "has the same name twice")
    return found


def describe(config: Config, given: Arguments) -> str:
    """The workload, in a line."""
    sizes = given.batch_sizes or (config.trainer.batch_size,)
    batch = f"batch {', '.join(map(str, sizes))}{' a worker' if '--weak' in given.flags else ''}"
    return (f"{config.model.label}, {config.model.image_size} px, {config.data.name}, {batch}, "
            f"{config.trainer.precision}")


def recommend(given: Arguments, console: Console) -> bool:
    """Print what is recommended; whether anything can be had."""
    by_cluster = configs(given)
    first = next(iter(by_cluster.values()))
    question = Question(by_cluster, given.workers, given.batch_sizes or (first.trainer.batch_size,), given.strategies,
                        "--weak" in given.flags)
    with Console(stderr=True).status("predicting") as status:
        found = list(options(question, lambda text: status.update(f"predicting {text}")))
    choices = choose(found, given.epoch_s)
    console.print(describe(first, given), soft_wrap=True, highlight=False)
    console.print()
    show(found, choices, given.epoch_s, "--all" in given.flags, console)
    if given.html is not None:
        given.html.write_text(page(found, choices, given.epoch_s, describe(first, given)), encoding="utf-8")
        console.print(f"written: {given.html}", soft_wrap=True, highlight=False)
    return bool(choices)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 2 for bad input, after one line on standard error."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            given = read_arguments(arguments)
            if {"--help", "-h"} & given.flags:
                print((__doc__ or "").rstrip())
                return 0
            code = 0 if recommend(given, console) else 2
        except (ValueError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            code = 2
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"warning: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
