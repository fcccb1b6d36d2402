"""A process that decodes files into the rows of a cache: `python -m parallel.data.decoder SIZE PIXELS`.

`build.py` starts one per core. They are not made by `multiprocessing`, whose safe start methods import the parent's
main module again: torch and all, seconds and hundreds of megabytes per process, to decode a JPEG.

SIZE is the side in pixels, PIXELS the .npy file to write into, or "" to see only whether the files decode. A request
is a line `{"start": row, "files": [path, …]}` on stdin; its answer a line on stdout: `{"broken": [[row, reason], …]}`,
or `{"failed": "…"}` when a file can't be read at all, which is a fault of the disk and not of the image. The process
ends with its stdin, so it does not outlive its parent however that dies.
"""

from __future__ import annotations

import json
import signal
import sys
import warnings
from pathlib import Path

import numpy as np

from parallel.data.decode import BrokenImageError, decode


def decode_files(files: list[str], size: int, start: int, pixels: np.ndarray | None) -> list[tuple[int, str]]:
    """Decode `files` into the rows of `pixels` from `start` on; returns row and reason of each broken image, whose
    row is left as it is. Raises `OSError` for a file that can't be read."""
    broken = []
    for row, path in enumerate(files, start):
        data = Path(path).read_bytes()
        try:
            square = decode(data, size)
        except BrokenImageError as error:
            broken.append((row, str(error)))
            continue
        if pixels is not None:
            pixels[row] = square
    return broken


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends this one
    warnings.simplefilter("ignore")  # Pillow warns of damaged EXIF data, which is not used
    size, pixels_path = int(sys.argv[1]), sys.argv[2]
    pixels = np.load(pixels_path, mmap_mode="r+") if pixels_path else None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, object] = {"broken": decode_files(request["files"], size, request["start"], pixels)}
        except OSError as error:
            answer = {"failed": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
