"""Plans of the small models that many tests run: those of the strategies, and written ones."""

from __future__ import annotations

from parallel.config import StrategyConfig
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, Single

OWT_SCHEMES = (("a", "step"), ("b", "step"), ("b", "pass"), ("c", "step"), ("c", "pass"))
NAMED: list[tuple[int, StrategyConfig]] = [
    (1, Single()),
    (1, ModelParallel()),
    (1, OneWeirdTrick(scheme="c", update="pass")),
    *((n, DataParallel()) for n in (1, 2, 3, 4)),
    *((n, ModelParallel(scheme="tensor")) for n in (2, 3, 4)),
    (3, ModelParallel(scheme="tensor", micro_batches=2)),
    *(
        (n, ModelParallel(micro_batches=m, pipeline=pipeline))
        for n, m in ((2, 1), (2, 2), (2, 4), (3, 4), (4, 1), (4, 3), (4, 6))
        for pipeline in ("fill_drain", "1f1b")
    ),
    *((n, OneWeirdTrick(scheme=scheme, update=update)) for n in (2, 3, 4) for scheme, update in OWT_SCHEMES),
]


def title(n: int, s: StrategyConfig) -> str:
    return f"{n} {s.full_label(None)}"


WRITTEN: dict[str, tuple[str, int, str]] = {
    "the design's example": (
        "tower",
        7,
        """
        {workers: 4, micro_batches: 1, ops: {conv1: {n: 4, on: [0, 1, 2, 3]}, conv2: {h: 2, w: 2, on: [0, 2, 1, 3]},
         fc3: {c: 3, on: [0, 1, 2]}, fc5: {on: [0]}}}""",
    ),
    "space, then partial sums": (
        "towers",
        4,
        """
        {workers: 4, ops: {conv1: {h: 3, on: [3, 1, 0]}, norm1: {c: 2, w: 2, on: [2, 0, 3, 1]},
         conv2: {k: 2, h: 2, on: [1, 0, 2, 3]}, conv3: {c: 2, k: 2, on: [0, 1, 2, 3]}, fc4: {k: 4, on: [3, 2, 1, 0]},
         fc5: {c: 2, k: 2, on: [1, 3, 0, 2]}}}""",
    ),
    "every dim of a conv with groups": (
        "odd",
        4,
        """
        {workers: 4, ops: {conv1: {c: 4, on: [0, 1, 2, 3]}, pool1: {h: 4, on: [2, 0, 1, 3]},
         conv2: {n: 2, k: 2, on: [3, 0, 1, 2]}, flatten: {c: 3, on: [2, 0, 1]}, fc3: {k: 3, on: [0, 1, 3]}}}""",
    ),
    "weights in every dim": (
        "towers",
        9,
        """
        {workers: 4, ops: {conv1: {n: [3, 1], on: [1, 0]}, norm1: {c: [1, 2, 2], on: [0, 3, 1]},
         pool1: {h: [1, 2], on: [2, 1]}, conv2: {c: 2, k: [2, 1], on: [3, 0, 1, 2]}, conv3: {w: [1, 2], on: [0, 2]},
         fc4: {k: [1, 3], n: 2, on: [0, 1, 2, 3]}, fc5: {c: [3, 2], on: [2, 3]}}}""",
    ),
    "weights in a pipeline": (
        "tower",
        12,
        """
        {workers: 3, micro_batches: 3, ops: {conv1: {n: [3, 1], on: [0, 1]}, fc3: {c: [8, 3], on: [1, 2]}}}""",
    ),
    "batch norm over uneven samples": (
        "residual",
        7,
        """
        {workers: 3, ops: {conv1: {n: [4, 1, 1], on: [0, 1, 2]}, layer2.conv1: {h: [1, 2], on: [0, 1]},
         fc: {c: [1, 4], on: [2, 0]}}}""",
    ),
    "passes whose linear layers have weights": (
        "tower",
        12,
        """
        {workers: 2, scheme: b, micro_batches: 2, ops: {conv1: {n: 2, on: [0, 1]}, fc3: {c: [2, 1], on: [0, 1]}}}""",
    ),
    "a worker without work": ("tower", 5, "{workers: 3, ops: {conv1: {n: 2, on: [2, 0]}}}"),
    "a pipeline whose stages are data parallel": (
        "tower",
        12,
        """
        {workers: 4, micro_batches: 4, ops: {conv1: {n: 2, on: [0, 1]}, fc3: {n: 2, on: [2, 3]}}}""",
    ),
    "a pipeline that comes back": (
        "tower",
        12,
        """
        {workers: 2, micro_batches: 4, ops: {conv1: {on: [0]}, conv2: {on: [1]}, fc3: {on: [0]}, fc5: {on: [1]}}}""",
    ),
    "no weights on the first worker": (
        "weightless",
        6,
        """
        {workers: 3, micro_batches: 2, ops: {pool1: {on: [0]}, conv2: {k: 2, on: [1, 2]}, fc4: {on: [2]}}}""",
    ),
    "partial sums of which each worker then needs all": (
        "weightless",
        5,
        """
        {workers: 2, ops: {pool1: {n: 2, on: [0, 1]}, conv2: {k: 2, on: [0, 1]}, conv3: {c: 2, on: [0, 1]}}}""",
    ),
    "passes that no op is left for": (
        "tower",
        8,
        """
        {workers: 2, scheme: c, micro_batches: 2, update: pass, ops: {conv1: {n: 2, on: [0, 1]}}}""",
    ),
    "a single op on another worker": (
        "odd",
        6,
        """
        {workers: 2, micro_batches: 2, pipeline: fill_drain, ops: {conv1: {h: 2, on: [1, 0]}, drop1: {on: [1]},
         pool1: {w: 2, on: [0, 1]}, loss: {n: 2, on: [1, 0]}}}""",
    ),
    "only the loss elsewhere": (
        "towers",
        9,
        """
        {workers: 3, scheme: c, micro_batches: 3, update: pass,
         ops: {conv1: {n: 3, on: [1, 2, 0]}, loss: {on: [0]}}}""",
    ),
    "scheme b on some of the workers": (
        "tower",
        12,
        """
        {workers: 4, scheme: b, micro_batches: 3, update: pass, ops: {conv1: {n: 3, on: [3, 0, 2]},
         fc3: {c: 4, on: [0, 1, 2, 3]}, fc5: {n: 2, on: [1, 3]}}}""",
    ),
    "passes in a pipeline": (
        "towers",
        8,
        """
        {workers: 2, scheme: b, micro_batches: 2, update: pass,
         ops: {conv1: {n: 2, on: [0, 1]}, conv3: {on: [0]}, fc5: {on: [1]}}}""",
    ),
    "scheme c, then splits in space": (
        "towers",
        8,
        """
        {workers: 2, scheme: c, micro_batches: 2, update: step, ops: {conv1: {n: 2, on: [1, 0]},
         conv2: {h: 2, on: [0, 1]}, fc4: {c: 2, on: [1, 0]}}}""",
    ),
    "batch norm over samples": ("residual", 7, "{workers: 3, ops: {conv1: {n: 3, on: [0, 1, 2]}}}"),
    "batch norm of whole channels": (
        "residual",
        5,
        "{workers: 2, ops: {conv1: {c: 2, on: [1, 0]}, layer2.conv2: {on: [0]}, bn3: {c: [2, 1], on: [0, 1]}}}",
    ),
    "batch norm in space and channels": (
        "residual",
        4,
        """
        {workers: 4, ops: {conv1: {h: 2, w: 2, on: [0, 1, 2, 3]}, layer1.conv1: {c: 2, h: 2, on: [3, 1, 0, 2]},
         layer2.bn1: {c: 4, on: [1, 0, 2, 3]}, bn3: {n: 2, c: 2, on: [2, 3, 1, 0]}}}""",
    ),
    "statistics on other workers than what they are for": (
        "residual",
        6,
        """
        {workers: 4, ops: {conv1: {n: 2, on: [0, 1]}, layer1.bn1.sums: {n: 3, on: [3, 2, 1]}, layer1.bn1: {on: [3]},
         layer1.add: {c: 4, on: [0, 1, 2, 3]}, layer2.bn2.sums: {on: [0]}, concat: {c: 3, on: [0, 2, 3]}}}""",
    ),
    "the two ways of a block on two workers": (
        "residual",
        5,
        """
        {workers: 2, ops: {conv1: {on: [0]}, layer2.downsample.0: {on: [1]}, side: {on: [1]}}}""",
    ),
    "sums within one worker's pass": (
        "residual",
        5,
        """
        {workers: 2, scheme: c, ops: {conv1: {n: 1, on: [0]}, layer2.bn1: {on: [1]}}}""",
    ),
    "branches in a pipeline": (
        "branches",
        12,
        """
        {workers: 3, micro_batches: 4, ops: {conv1: {on: [0]}, pool: {on: [1]}, conv3: {on: [1]}, concat: {on: [2]},
         fc5: {on: [0]}, concat_1: {on: [1]}}}""",
    ),
    "branches with other samples on the same workers": (
        "branches",
        6,
        """
        {workers: 2, ops: {conv1: {h: 2, on: [0, 1]}, conv2: {n: 2, on: [0, 1]}, pool: {h: 2, on: [0, 1]},
         flatten: {c: 2, on: [1, 0]}, fc5: {n: 2, on: [1, 0]}, short: {k: 2, on: [0, 1]}}}""",
    ),
    "branches of a pass": (
        "branches",
        9,
        """
        {workers: 3, scheme: c, micro_batches: 3, ops: {conv1: {n: 3, on: [0, 1, 2]}, add: {c: 3, on: [2, 1, 0]},
         fc4: {c: 2, on: [1, 2]}}}""",
    ),
    "a concatenation of which a worker has one input": (
        "branches",
        4,
        """
        {workers: 4, ops: {conv1: {on: [2]}, concat: {c: 4, on: [3, 2, 1, 0]}, fc6: {k: 4, on: [0, 1, 2, 3]}}}""",
    ),
}
"""Model, batch size and text of plans by what is special about them."""
