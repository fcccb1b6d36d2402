"""Elements, scales and round tick values of SVG plots.

Colours are CSS custom properties, so that one drawing serves light and dark themes. A `<title>` in
each mark shows its numbers under the pointer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape


def element(name: str, *children: str, **attributes: object) -> str:
    """Return an element. `stroke_width` becomes stroke-width, `class_` class; floats have two
    decimals.

    Children are markup; text needs `text` or `titled`, which escape it.
    """
    words = []
    for key, value in attributes.items():
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        words.append(f' {key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    inner = "".join(children)
    return f"<{name}{''.join(words)}>{inner}</{name}>" if inner else f"<{name}{''.join(words)}/>"


def text(x: float, y: float, content: str, anchor: str = "start", **attributes: object) -> str:
    """Return text whose baseline has its start, middle or end at (x, y)."""
    return element("text", escape(content), x=float(x), y=float(y), text_anchor=anchor, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> str:
    """Return a straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), **attributes)


def rect(x: float, y: float, width: float, height: float, *children: str, **attributes: object) -> str:
    """Return a rectangle; a negative width counts as zero."""
    return element(
        "rect",
        *children,
        x=float(x),
        y=float(y),
        width=float(max(0.0, width)),
        height=float(height),
        **attributes,
    )


def titled(title: str) -> str:
    """Return the tooltip of the parent element."""
    return element("title", escape(title))


def drawing(width: float, height: float, *children: str, label: str) -> str:
    """Return a complete drawing with `label` as its description for screen readers."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        xmlns="http://www.w3.org/2000/svg",
    )


@dataclass(frozen=True)
class Scale:
    """Linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        return self.start + (self.end - self.start) * ((value - self.low) / span if span else 0.5)

    def ticks(self, count: int = 6) -> list[float]:
        """Return about `count` round values within the scale."""
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class LogScale:
    """Logarithmic map from positive values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = math.log(self.high / self.low)
        return self.start + (self.end - self.start) * (math.log(value / self.low) / span if span else 0.5)

    def ticks(self, count: int = 6) -> list[float]:
        """Return round values within the scale, of the coarsest series with at least `count / 2` of
        them."""
        found: list[float] = []
        for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(range(10, 100, 2))):
            powers = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1)
            found = [
                v
                for n in powers
                for digit in digits
                if self.low * (1 - 1e-9) <= (v := digit * 10.0**n) <= self.high * (1 + 1e-9)
            ]
            if len(found) >= count / 2:
                break
        return found[:: math.ceil(len(found) / (2 * count))] if found else []


def tick_label(value: float, ticks: list[float]) -> str:
    """Return a tick's value with as many decimals as the spacing needs."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}"


def shortened(content: str, length: int) -> str:
    """Return the text, or its beginning and an ellipsis."""
    return content if len(content) <= length else content[: length - 1].rstrip() + "…"


def spread_out(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart to at least `gap`, as little as one pass each way allows, between `low` and
    `high`."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for before, this in zip(order, order[1:], strict=False):
        moved[this] = max(moved[this], moved[before] + gap)
    excess = max(0.0, moved[order[-1]] - high) if order else 0.0
    if excess:
        moved[order[-1]] = high
        for this, after in zip(order[-2::-1], order[:0:-1], strict=True):
            moved[this] = max(low, min(moved[this], moved[after] - gap))
    return moved


def _round_step(raw: float) -> float:
    """Return the least of 1, 2 and 5 times powers of ten that is at least `raw`."""
    if raw <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
