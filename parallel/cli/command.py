"""Run a command in one process: arguments, help, console, progress, errors and exit codes.

    COMMAND = Command(__doc__, flags=("--steps",), files=("--svg",), keys=("epoch_s",), width=120)

    def body(given: Given, console: Console) -> int: ...

    if __name__ == "__main__":
        sys.exit(COMMAND.run(body, sys.argv[1:]))

Exit codes: 0 success; 2 invalid input, with one line on standard error; 130 Ctrl-C. A command may
define others. Commands that run under torchrun use `parallel.cli.ranked`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from parallel.config import invalid_input, printable, require
from parallel.config.stderr import print_to_stderr

HELP = ("--help", "-h")


@dataclass(frozen=True)
class Given:
    """The parsed arguments of a command."""

    flags: frozenset[str] = frozenset()
    files: Mapping[str, Path] = field(default_factory=dict)
    """Files by flag."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Texts by flag."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Values of the command's own keys, by key."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Values of flags that may have one, by flag; empty for a flag without it."""
    rest: tuple[str, ...] = ()
    """All other arguments, in order: overrides of the configuration."""


@dataclass(frozen=True)
class Command:
    """The arguments that a command accepts, and the width of its output."""

    help: str | None
    """Text that --help prints: the docstring of the command's module."""
    flags: tuple[str, ...] = ()
    """Flags without a value: `--steps`."""
    files: tuple[str, ...] = ()
    """Flags that take a file to write, as `--svg FILE` or `--svg=FILE`. Its folder must exist."""
    texts: tuple[str, ...] = ()
    """Flags that take a text, as `--sort COLUMN` or `--sort=COLUMN`."""
    keys: tuple[str, ...] = ()
    """Keys of the command itself, which are not part of the configuration: `epoch_s=600`."""
    optional: tuple[str, ...] = ()
    """Flags that may have a value: `--watch` or `--watch=5`."""
    width: int = 120
    """Width of the output in columns if it does not go to a terminal."""

    def run(self, body: Callable[[Given, Console], int], arguments: Sequence[str]) -> int:
        """Run `body` and return the exit code. Print each distinct warning once, after the
        output."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            code = self._run(body, arguments)
        for message in dict.fromkeys(str(warning.message) for warning in caught):
            print_to_stderr(f"warning: {printable(message)}")
        return code

    def read(self, arguments: Sequence[str]) -> Given:
        """Parse the arguments.

        Raises `ValueError` for an unknown flag, a repeated key, or a file in a missing folder.
        """
        flags: set[str] = set()
        files: dict[str, Path] = {}
        texts: dict[str, str] = {}
        keys: dict[str, str] = {}
        values: dict[str, str] = {}
        rest: list[str] = []
        remaining = iter(arguments)
        known = (*self.flags, *self.files, *self.texts, *self.optional, *HELP)
        for argument in remaining:
            name, equals, value = argument.partition("=")
            if name in self.files:
                value = value if equals else next(remaining, "")
                require(value not in ("", *known), name, value, "must name the file to write")
                require(Path(value).parent.is_dir(), name, value, "lies in a folder that does not exist")
                files[name] = Path(value)
            elif name in self.texts:
                value = value if equals else next(remaining, "")
                require(value not in ("", *known), name, value, "must be a value")
                texts[name] = value
            elif name in self.optional:
                require(bool(value) or not equals, name, value, "must have a value after =")
                values[name] = value
            elif argument.startswith("-"):
                require(argument in known, "flag", argument, f"is not known; there are {', '.join(known)}")
                flags.add(argument)
            elif equals and name in self.keys:
                require(name not in keys, name, value, f"is given twice; the first was {keys.get(name)}")
                keys[name] = value
            else:
                rest.append(argument)
        return Given(frozenset(flags), files, texts, keys, values, tuple(rest))

    def _run(self, body: Callable[[Given, Console], int], arguments: Sequence[str]) -> int:
        def run() -> int:
            given = self.read(arguments)
            if given.flags.intersection(HELP):
                print((self.help or "").rstrip())
                return 0
            return body(given, open_console(self.width))

        return exit_code(run)


def exit_code(body: Callable[[], int]) -> int:
    """Return `body()`, or the exit code of the error that it raises; print invalid input as a line."""
    try:
        return body()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        sentence = invalid_input(error)
        if sentence is None:
            raise
        print_to_stderr(f"error: {sentence}")
        return 2


def open_console(width: int, *, stderr: bool = False) -> Console:
    """Return a console with the width of the terminal, or of `width` columns without a terminal."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = width
    return console


@contextlib.contextmanager
def progress(doing: str) -> Iterator[Callable[[str], None]]:
    """Show a status line on standard error if it is a terminal.

    Yields a function that appends a text to it: `predicting dgx1`.
    """
    with Console(stderr=True).status(doing) as status:
        yield lambda text: status.update(f"{doing} {text}")
