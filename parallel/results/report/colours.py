"""Colours of the series in plots and tables: CSS variables that `templates/style.css` defines for
light and dark."""

from __future__ import annotations

from parallel.results.comparison import strategy_place

PALETTE = tuple(f"var(--series-{number})" for number in range(1, 9))


def strategy_colour(strategy: str) -> str:
    """Return the colour of a strategy, the same in every plot: the palette in the order of the
    strategies."""
    return PALETTE[min(strategy_place(strategy), len(PALETTE) - 1)]
