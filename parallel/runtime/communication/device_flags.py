"""Switches of torch that say how GPUs compute: set while a world is open, restored when it closes.

    trainer.precision    products of fp32 tensors: matrix products (cuBLAS), convolutions (cuDNN)
    fp32, bf16, fp64     IEEE fp32
    tf32                 TF32: factors rounded to 10 bits of mantissa, sums in fp32

Torch's defaults mix both: convolutions in TF32, matrix products in fp32. The switches are global to
the process, so peers compute with the same ones.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from parallel.config import require

IEEE, TF32 = "ieee", "tf32"
OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""Environment variable by which NVIDIA's libraries ignore the switches: 0 or 1."""


@dataclass(frozen=True)
class DeviceFlags:
    """The switches of a run."""

    tf32: bool = False
    """Whether products of fp32 tensors are computed in TF32."""
    benchmark: bool = True
    """Whether cuDNN times its algorithms for each convolution once. Shapes are the same in every step, so
    this happens in the warm-up."""

    @staticmethod
    def of(precision: str) -> DeviceFlags:
        """Return the switches of a `trainer.precision`."""
        return DeviceFlags(tf32=precision == TF32)

    def set(self) -> None:
        """Set the switches of this process.

        Torch has two generations of them. The older ones come first: they also change the newer
        ones, but not the other way round, and torch raises where it still reads an older one that
        disagrees (torch.compile did until 2.11, pytorch#166387).
        """
        _write_older(self.tf32, self.tf32)
        _write(dict.fromkeys(_SWITCHES, TF32 if self.tf32 else IEEE))
        torch.backends.cudnn.benchmark = self.benchmark


_CUDNN: Any = torch.backends.cudnn
_SWITCHES: dict[str, Any] = {
    "matmul": torch.backends.cuda.matmul,
    "convolution": _CUDNN.conv,
    # Not used here, but torch's older switch, one for both, must agree with both.
    "rnn": _CUDNN.rnn,
}


def _write_older(matmul: bool, cudnn: bool) -> None:
    with warnings.catch_warnings():
        # Torch before 2.13 recommends the newer switches, which are set, too.
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = cudnn


def _write(values: dict[str, str]) -> None:
    for name, value in values.items():
        _SWITCHES[name].fp32_precision = value


def flags_in_effect() -> dict[str, str]:
    """Return the arithmetic of fp32 products as torch has it now: `ieee`, `tf32`, or `none`, which computes
    as `ieee`."""
    return {name: str(switch.fp32_precision) for name, switch in _SWITCHES.items()}


@contextmanager
def kept_flags() -> Iterator[None]:
    """Restore the switches at the end."""
    before, benchmark = flags_in_effect(), torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        _write_older(before["matmul"] == TF32, before["convolution"] == before["rnn"] == TF32)
        _write(before)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def device_flags(flags: DeviceFlags) -> Iterator[None]:
    """Set the switches; restore those of before at the end."""
    with kept_flags():
        flags.set()
        yield


def check_precision(
    precision: str,
    device: torch.device,
    has_tf32: Callable[[], bool] = torch.cuda.is_tf32_supported,
    name: Callable[[], str] = torch.cuda.get_device_name,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Raise `ValueError` if the device cannot compute in this precision, or the environment forces another.

    `has_tf32` and `name` describe the current GPU; CPUs are not asked.
    """
    forced = environment.get(OVERRIDE)
    contradicted = device.type == "cuda" and forced in ("0", "1") and (forced == "1") != (precision == TF32)
    require(
        not contradicted,
        OVERRIDE,
        forced,
        f"forces NVIDIA's libraries {'to use TF32' if forced == '1' else 'not to use TF32'}, against "
        f"trainer.precision={precision}: unset it",
    )
    if precision != TF32:
        return
    require(
        device.type == "cuda",
        "trainer.precision",
        TF32,
        "needs a GPU, and this run computes on CPUs: use fp32",
    )
    require(
        has_tf32(),
        "trainer.precision",
        TF32,
        f"needs tensor cores with TF32 (Ampere or newer), which {name()} does not have: use fp32",
    )
