"""Writing files of tensors so that they are on disk, whole, when the function returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with the permissions of its folder, and wait for the disk."""
    save_file(dict(tensors), path, metadata=dict(metadata))
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors gives its files to the owner alone
    with open(path, "rb") as file:
        os.fsync(file.fileno())
