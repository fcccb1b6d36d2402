"""Bring public data sets into the folders in which the experiments look for them.

    python scripts/get_data.py tiny_imagenet dogs_vs_cats
    python scripts/get_data.py dogs_vs_cats --archive ~/Downloads/train.zip
    python scripts/get_data.py tiny_imagenet dogs_vs_cats --digits

The archives are downloaded from their publishers and checked by length and checksum; a download
that broke off is continued by the same command. Each set is unpacked into `OUT/NAME` (data/NAME), for
`data.root`. `--archive` takes an archive that is on this machine: the published one, or one of
another name with the same layout, such as Kaggle's train.zip, of which no checksum is known.
`--digits` writes the handwritten digits of scikit-learn in the layout instead, for a machine without
the data; runs on them record their data as `tiny_imagenet (digits)`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn
from write_image_layouts import Variety, digit_pictures, write_stand_in

from parallel.cli.command import exit_code
from parallel.data import DATA_SETS, ON_DISK
from parallel.data.download.obtain import obtain
from parallel.data.download.published_sets import PUBLISHED_SETS, WITH_ACCOUNT
from parallel.data.download.resumable import Unreachable

TRAIN, VAL = 10_000, 1_000
"""Images that --digits writes."""
OFFLINE = (
    "Without a network, bring the archive from another machine and give it with --archive FILE, or write "
    "digits in its layout with --digits"
)


@contextlib.contextmanager
def bar(title: str, total: int | None, unit: type) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error if it is a terminal; yield a function that advances it."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), unit())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


def get(name: str, args: argparse.Namespace) -> None:
    """Bring one data set to its place and say where it is.

    Raises `ValueError` for what cannot be had or is not the set.
    """
    root = args.out / name
    published = PUBLISHED_SETS[name]
    if not args.archive:
        print(f"{name}: {args.address or published.address}, {published.size:,} bytes", flush=True)
    with (
        bar("downloading", published.size, DownloadColumn) as downloaded,
        bar("unpacking", None, MofNCompleteColumn) as unpacked,
    ):
        got = obtain(
            name,
            published,
            root,
            address=args.address,
            archive=args.archive,
            sha256=args.sha256,
            downloaded=downloaded,
            unpacked=unpacked,
        )
    if got.sha256:
        print(f"SHA-256 of the archive: {got.sha256}")
    print(f"{name}: {got.train_images:,} training and {got.val_images:,} validation images in {root}")
    if not got.is_whole:
        print(f"note: the published set has {got.published_images:,} training images")
    print(f"train: python -m parallel.train experiment={name} data.root={root}")


def write_digits(name: str, args: argparse.Namespace) -> None:
    """Write digits in the layout of a data set. Raises `ValueError` if its folder is not empty."""
    root = args.out / name
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty: remove it, or choose another --out")
    # Tiny ImageNet's images have 64 pixels, the others some hundreds.
    sides = (64, 64) if name == "tiny_imagenet" else (96, 320)
    write_stand_in(name, root, digit_pictures(), args.images, args.val_images, Variety(sides=sides))
    print(f"{name} (digits): {args.images:,} training and {args.val_images:,} validation images in {root}")


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"{', '.join(sorted(ON_DISK))}")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder of the sets' folders (data)")
    parser.add_argument("--archive", type=Path, help="take this archive instead of downloading one")
    parser.add_argument("--sha256", metavar="HEX", help="checksum that the archive must have")
    parser.add_argument("--address", metavar="URL", help="download the published archive from a mirror")
    parser.add_argument("--digits", action="store_true", help="write digits in the layout instead")
    parser.add_argument("--images", type=int, default=TRAIN, help=f"training images of --digits ({TRAIN:,})")
    parser.add_argument(
        "--val-images", type=int, default=VAL, help=f"validation images of --digits ({VAL:,})"
    )
    args = parser.parse_args(arguments)

    def run() -> int:
        refuse(args)
        for name in args.names:
            if args.digits:
                write_digits(name, args)
            else:
                try:
                    get(name, args)
                except Unreachable as error:
                    raise ValueError(f"{error}. {OFFLINE}") from error
        return 0

    return exit_code(run)


def refuse(args: argparse.Namespace) -> None:
    """Raise `ValueError` for names and options that cannot be used together."""
    for name in args.names:
        if name in WITH_ACCOUNT and not args.digits:
            raise ValueError(WITH_ACCOUNT[name])
        if name not in (*PUBLISHED_SETS, *WITH_ACCOUNT):
            known = "nothing to download" if name in DATA_SETS else "unknown"
            raise ValueError(f"{name}: {known}; there are {', '.join((*PUBLISHED_SETS, *WITH_ACCOUNT))}")
    own = [f"--{key}" for key in ("archive", "sha256", "address") if getattr(args, key)]
    if own and len(args.names) > 1:
        raise ValueError(f"{own[0]} belongs to one data set: give one NAME")
    if own and args.digits:
        raise ValueError(f"{own[0]} has no use with --digits, which downloads nothing")
    if args.archive and args.address:
        raise ValueError("--address has no use with --archive, which is already on this machine")
    if args.digits and not (0 < args.images <= 10**6 and 0 < args.val_images <= 10**6):
        raise ValueError("--images and --val-images must be from 1 to a million")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
