"""The command that runs a result again, to paste into a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parallel.results.command_line import script_module
from parallel.results.records import Record
from parallel.results.settings import flat, shown

TRAIN = "parallel.train"
LAUNCHERS = frozenset(
    [
        *("parallel.emulate", "parallel.torchrun", "torch.distributed.run"),
        *("torchrun", "srun", "mpirun", "mpiexec"),
    ]
)
"""Modules and programs that start the processes of a run, on one host or several."""
LONGEST = 128 * 1024
"""Characters of a command. Linux passes no longer argument, and `shlex` takes quadratic time."""
RUN_DIR = "hydra.run.dir="
MULTIRUN = ("-m", "--multirun", "hydra.mode=MULTIRUN")
SWEEP = re.compile(r"[+~]*hydra[./](mode|sweep|sweeper|launcher)\b")
"""Overrides of a sweep itself, which a single run does not take."""
SWEPT = re.compile(r"(choice|range|glob|interval|tag|sort|shuffle)\(")
"""Functions of Hydra that sweep over values."""
PLAIN = re.compile(r"[\w./+-]+|\[.*\]")
"""Values that need no quotes in an override: words, numbers and lists."""


def command_again(record: Record) -> str | None:
    """Return the command of a record without its run directory, which holds a finished run.

    A job of a sweep has its own values instead of the sweep's. Workers without a launcher in the command
    are started by torchrun. None: the record names no command that trains (it was imported), or none
    that would run the same again.
    """
    if len(record.command) > LONGEST:
        return None
    try:
        words = shlex.split(record.command)
    except ValueError:
        return None
    place = next((i for i in range(len(words)) if _trains(words, i)), None)
    if place is None:
        return None
    script = words[place] != TRAIN
    before, arguments = words[: place if script else place - 1], words[place + 1 :]
    if any(word in MULTIRUN for word in arguments):
        own = _own_overrides(arguments, flat(record.config))
        if own is None:
            return None
        arguments = own
    train = [words[place]] if script else ["-m", TRAIN]
    arguments = [word for word in arguments if not word.startswith(RUN_DIR)]
    if any(_name(word) in LAUNCHERS for word in before):
        return shlex.join([*before, *train, *arguments])
    if len(record.hosts) > 1:
        return None  # Nothing says how its hosts find each other.
    if record.workers > 1:
        start = ["python", "-m", "parallel.torchrun", "--nproc-per-node", str(record.workers)]
        return shlex.join([*start, "-m", TRAIN, *arguments])
    return shlex.join([*([] if script else ["python"]), *train, *arguments])


def _trains(words: Sequence[str], place: int) -> bool:
    """Return whether the word at `place` is the module, or the console script, that trains."""
    if words[place] == TRAIN:
        return place > 0 and words[place - 1] == "-m"
    return script_module(words[place]) == TRAIN


def _name(word: str) -> str:
    """Return the module of a console script, or the name of a program without its folder."""
    return script_module(word) or Path(word).name


def _own_overrides(arguments: Sequence[str], config: Mapping[str, Any]) -> list[str] | None:
    """Return the overrides of one job of a sweep, with this configuration. None: a value is unknown."""
    own = []
    for word in arguments:
        if word in MULTIRUN or SWEEP.match(word):
            continue
        key, equals, value = word.partition("=")
        if equals and _sweeps(value):
            name = key.lstrip("+~")
            found = next((config[n] for n in (name, f"{name}.name") if n in config), None)
            if found is None:
                return None
            text = shown(found)
            if "'" in text or "\\" in text:
                return None
            quote = "" if PLAIN.fullmatch(text) else "'"
            word = f"{key}={quote}{text}{quote}"
        own.append(word)
    return own


def _sweeps(value: str) -> bool:
    """Return whether the value of an override is several: it has a comma outside brackets and quotes."""
    depth, quote = 0, ""
    if SWEPT.match(value):
        return True
    for char in value:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in ")}]":
            depth -= 1
        elif char == "," and depth == 0:
            return True
    return False
