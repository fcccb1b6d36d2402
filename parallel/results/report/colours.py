"""Colours of the series in plots and tables: CSS variables that `templates/style.css` defines for
light and dark."""

from __future__ import annotations

PALETTE = tuple(f"var(--series-{number})" for number in range(1, 13))


def strategy_colour(place: int) -> str:
    """Return the colour of a strategy by its place in the order of strategies, the same in every
    plot; those beyond the palette share its last colour."""
    return PALETTE[min(place, len(PALETTE) - 1)]


def strategy_class(place: int) -> str:
    """Return the CSS class whose `--c` is the colour of the strategy."""
    return f"s{min(place, len(PALETTE) - 1) + 1}"
