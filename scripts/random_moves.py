"""Random moves for benchmarks and tests of the delta simulation: one op gets a random layout."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from parallel.graph import Graph
from parallel.graph.ops import Op
from parallel.plans import Layout


def random_moves(graph: Graph, workers: int, batch_size: int, seed: int) -> Iterator[tuple[str, Layout]]:
    """Yield moves of the ops with parameters and of the first op (FlexFlow, section 6.1)."""
    random = Random(seed)
    movable = [op for i, op in enumerate(graph) if op.parameters or i == 0]
    while True:
        op = random.choice(movable)
        yield op.name, random_layout(op, workers, batch_size, random)


def random_layout(op: Op, workers: int, batch_size: int, random: Random) -> Layout:
    """Return a random valid layout on an aligned block of workers.

    The block has a power of two of the workers, or all. Each prime factor of its size goes to a
    random dim.
    """
    sizes = [1 << i for i in range(workers.bit_length()) if 1 << i < workers] + [workers]
    size = random.choice(sizes)
    first = random.randrange(workers // size) * size
    degrees = dict.fromkeys("nckhw", 1)
    for factor in _prime_factors(size):
        dims = [
            dim for dim in op.dims if degrees[dim] * factor <= (batch_size if dim == "n" else op.extent(dim))
        ]
        degrees[random.choice(dims)] *= factor
    return Layout(on=tuple(range(first, first + size)), **degrees)


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors
