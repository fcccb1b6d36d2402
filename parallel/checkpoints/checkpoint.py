"""Checkpoints on disk, read: whole tensors, checksums, and which of several is the newest whole one.

<run>/checkpoints/step-00000042/checkpoint.json          the manifest
                                worker-0.safetensors     the pieces of one worker
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from parallel.checkpoints.manifest import FORMAT, MANIFEST, Manifest
from parallel.checkpoints.piece import Piece, Place, assembled, from_header
from parallel.config import one_line, require
from parallel.config.typed import structure
from parallel.results.json_files import naming, read_json

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints in its run directory."""
STEP = "step-"


def folder_name(step: int) -> str:
    """Return the name of the folder of the checkpoint after `step` steps."""
    return f"{STEP}{step:08}"


class Checkpoint:
    """A checkpoint with a manifest, whose files `check` compares with it."""

    def __init__(self, folder: Path) -> None:
        """Read the manifest and the headers of the files.

        Raises `ValueError` that names the file for a missing, truncated or altered one.
        """
        self.folder = folder
        values = read_json(folder / MANIFEST, FORMAT)
        with naming(folder / MANIFEST):
            self.manifest = structure(Manifest, values)
            files, workers = len(self.manifest.files), self.manifest.workers
            require(files == workers, "files", files, f"must be one for each of workers={workers}")
        self._places: dict[tuple[str, str], list[tuple[Path, Place]]] = defaultdict(list)
        for file in self.manifest.files:
            path = folder / file.name
            with naming(path):
                self._check_size(path, file.bytes)
                for place in _read_places(path):
                    self._places[place.kind, place.name].append((path, place))

    @property
    def step(self) -> int:
        """Optimizer steps that were taken."""
        return self.manifest.step

    def names(self, kind: str) -> list[str]:
        """Return the names of the tensors of a kind."""
        return [name for other, name in self._places if other == kind]

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor."""
        return self._places[kind, name][0][1].shape

    def check(self) -> None:
        """Compare all files with their checksums. Raises `ValueError` that names the file."""
        for file in self.manifest.files:
            path = self.folder / file.name
            with naming(path), _reading():
                if sha256(path) != file.sha256:
                    raise ValueError(f"altered: its checksum is not the one in {MANIFEST}")

    def read(self, kind: str, name: str) -> Tensor:
        """Return a whole tensor on the CPU. Raises `ValueError` if there is none."""
        if (kind, name) not in self._places:
            raise ValueError(f"{self.folder} has no {kind} of {name}")
        with naming(self.folder):
            return assembled(_read_piece(path, place) for path, place in self._places[kind, name])

    @staticmethod
    def _check_size(path: Path, size: int) -> None:
        if not path.is_file():
            raise ValueError(f"does not exist, although {MANIFEST} beside it refers to it")
        if path.stat().st_size != size:
            raise ValueError(f"truncated or altered: {path.stat().st_size} bytes, but {MANIFEST} says {size}")


def whole_checkpoints(folder: Path) -> list[Path]:
    """Return the folders of the checkpoints in `folder` that have a manifest, the newest first."""
    found = [path.parent for path in folder.glob(f"{STEP}*/{MANIFEST}") if _step_of(path.parent) is not None]
    return sorted(found, key=lambda path: _step_of(path) or 0, reverse=True)


def readable_checkpoints(folder: Path, damaged: list[str]) -> Iterator[Checkpoint]:
    """Yield the checkpoints in `folder` whose files are as they were written, the newest first.

    For each other one, a sentence is appended to `damaged`.
    """
    for path in whole_checkpoints(folder):
        try:
            checkpoint = Checkpoint(path)
            checkpoint.check()
        except ValueError as error:
            damaged.append(one_line(error))
        else:
            yield checkpoint


def sha256(path: Path) -> str:
    """Return the checksum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _step_of(path: Path) -> int | None:
    digits = path.name.removeprefix(STEP)
    return int(digits) if digits.isdecimal() else None


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turn the errors of files that cannot be read, or hold no tensors, into `ValueError`."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from None
    except SafetensorError as error:
        raise ValueError(f"is not a file of tensors: {error}") from None


def _read_places(path: Path) -> tuple[Place, ...]:
    with _reading(), safe_open(path, framework="pt") as file:
        places = from_header(file.metadata())
        absent = {place.key for place in places}.symmetric_difference(file.keys())
    if absent:
        raise ValueError(f"its header does not fit its tensors: {sorted(absent)[0]}")
    return places


def _read_piece(path: Path, place: Place) -> Piece:
    with naming(path), _reading(), safe_open(path, framework="pt") as file:
        values = file.get_tensor(place.key)
    if tuple(values.shape) != (place.stop - place.start,):
        raise ValueError(f"{path}: {place.key} has the shape {tuple(values.shape)}")
    return Piece(place, values)
