"""A process that decodes files into the rows of a cache.

`build.py` starts one per core, as `python -m parallel.data.decoder SIZE PIXELS`. It does not use
`ProcessPoolExecutor`: the safe start methods of `multiprocessing` import the parent's main module,
and with it torch, into every process, and its processes outlive a parent that is killed.

SIZE is the side in pixels, PIXELS the .npy file to write into, or "" to only check that the files
decode. A request is a line `{"start": row, "files": [path, …]}` on stdin. The answer is a line on
stdout: `{"broken": [[row, reason], …]}`, or `{"failed": "…"}` if a file cannot be read (an error of
the disk, not of the image). The process ends when its stdin is closed, which also happens when the
parent is killed.
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
    """Decode `files` into the rows of `pixels` from `start` on.

    Returns row and reason of each broken image, whose row stays unchanged. Raises `OSError` for a
    file that cannot be read.
    """
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
    """Decode the images that standard input lists; the caller starts this as a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this
    warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF data, which is not used
    size, pixels_path = int(sys.argv[1]), sys.argv[2]
    pixels = np.load(pixels_path, mmap_mode="r+") if pixels_path else None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            broken = decode_files(request["files"], size, request["start"], pixels)
            answer: dict[str, object] = {"broken": broken}
        except OSError as error:
            answer = {"failed": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
