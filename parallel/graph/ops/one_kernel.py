"""Operators of torch that are one kernel on a GPU.

A function of many small operators becomes one operator, `parallel::name`. On a GPU torch.compile makes a
Triton kernel of it. On a CPU it is the sum of its parts, which there is as fast and needs no compiler.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

TRITON_CAPABILITY = (7, 0)
"""Compute capability from which Triton compiles for a GPU."""

_LIBRARY = torch.library.Library("parallel", "DEF")

logger = logging.getLogger(__name__)

Given = ParamSpec("Given")
Result = TypeVar("Result")


def one_kernel(schema: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return a decorator that makes a function of tensors the operator with this schema, such as
    `name(Tensor x, float p) -> Tensor`. The operator has no gradient.
    """

    def defined(function: Callable[Given, Result]) -> Callable[Given, Result]:
        name = schema.partition("(")[0]

        def on_gpu(*given: Given.args, **named: Given.kwargs) -> Result:
            device = next(one.device for one in given if isinstance(one, Tensor))
            result: Result = (function if _without_triton(device) else _compiled(function))(*given, **named)
            return result

        _LIBRARY.define(schema)
        for key, kernel in (("CPU", function), ("Meta", function), ("CUDA", on_gpu)):
            _LIBRARY.impl(name, kernel, key)
        operator = getattr(torch.ops.parallel, name)

        @functools.wraps(function)
        def call(*given: Given.args, **named: Given.kwargs) -> Result:
            # What torch.compile compiles, it fuses with its surroundings; an operator would be opaque to it.
            result: Result = (function if torch.compiler.is_compiling() else operator)(*given, **named)
            return result

        return call

    return defined


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # fullgraph: torch would otherwise run what it cannot compile as it is, without a word.
    return torch.compile(function, dynamic=True, fullgraph=True)


@functools.cache
def _without_triton(device: torch.device) -> bool:
    """Return whether a GPU has to run the parts one by one, and say so once."""
    reason = no_triton(torch.cuda.get_device_capability(device)) or no_launcher()
    if reason is not None:
        logger.warning(
            "dropout masks, and statistics of batch normalisations that workers share, take up to some 50 "
            "kernels each instead of one: %s",
            reason,
        )
    return reason is not None


def no_triton(capability: tuple[int, int]) -> str | None:
    """Return why Triton cannot compile for a GPU of this compute capability, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton; on Windows triton-windows)"
    if capability < TRITON_CAPABILITY:
        have, need = (".".join(map(str, version)) for version in (capability, TRITON_CAPABILITY))
        return f"this GPU has compute capability {have}, and Triton needs {need}"
    return None


def no_launcher() -> str | None:
    """Return why Triton cannot launch kernels here, or None if it can.

    It builds a part of itself at first use, with the machine's C compiler and the headers of Python and
    CUDA, which a slim image lacks.
    """
    try:
        importlib.import_module("triton.runtime").driver.active.get_current_target()
    except Exception as error:  # whatever the compiler and the linker end with is the reason
        text = " ".join(str(error).split())
        return f"Triton cannot build its launcher, which takes a C compiler and Python.h: {text}"
    return None
