"""Training curves as SVG, in the page's own colours."""

import html
import math
from collections.abc import Sequence

import numpy as np

from ummcsgm.reporting.cells import Curves
from ummcsgm.types import Array

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 40
POINTS = 300  # a longer curve is shown as the means of so many parts
KINDS = 6  # colours in the page's style


def svg(curves: Curves) -> str:
    """A plot of loss over step; losses that differ tenfold on a scale of powers."""
    lines = {label: thinned(points) for label, points in curves.lines.items()}
    steps, losses = np.concatenate(list(lines.values())).T
    powers = losses.min() > 0 and losses.max() > 10 * losses.min()
    across = _Axis((0.0, float(steps.max())), (LEFT, WIDTH - RIGHT), False)
    ends = (float(losses.min()), float(losses.max()))
    up = _Axis(ends, (HEIGHT - BOTTOM, TOP), powers)
    title = html.escape(f"Training loss over step: {curves.title}")
    drawn = [_line(points, across, up, n) for n, points in enumerate(lines.values())]
    parts = [*_ticks_across(across), *_ticks_up(up), *drawn]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg>"
    )


def thinned(points: Array) -> Array:
    """At most POINTS points [n, 2]: these, or the means of as many parts of them."""
    if len(points) <= POINTS:
        return points
    return np.stack([part.mean(0) for part in np.array_split(points, POINTS)])


class _Axis:
    """Values between `ends` as pixels between `room`; in `powers` of ten or evenly."""

    def __init__(self, ends: tuple[float, float], room: tuple[float, float], powers: bool):
        low, high = map(math.log10, ends) if powers else ends
        self.low, self.powers, self.room = low, powers, room
        self.span = high - low if high > low else 1.0

    def at(self, value: float) -> float:
        """The pixel of a value."""
        along = math.log10(value) if self.powers else value
        start, end = self.room
        return round(start + (end - start) * (along - self.low) / self.span, 1)

    def ticks(self) -> Sequence[float]:
        """A few round values between the ends."""
        high = self.low + self.span
        if self.powers:
            exponents = range(math.floor(self.low), math.ceil(high) + 1)
            steps = (1, 2, 5) if self.span < 2.5 else (1,)
            found = [m * 10.0**e for e in exponents for m in steps]
            return [v for v in found if self.low <= math.log10(v) <= high + 1e-9]
        size = 10 ** math.floor(math.log10(self.span / 3))
        size *= max(m for m in (1, 2, 5, 10) if self.span / (m * size) >= 2.5)
        first = math.ceil(self.low / size - 1e-9)
        return [n * size for n in range(first, math.floor(high / size + 1e-9) + 1)]


def _line(points: Array, across: _Axis, up: _Axis, place: int) -> str:
    places = " ".join(f"{across.at(x)},{up.at(y)}" for x, y in points)
    return f'<polyline class="line kind{place % KINDS}" points="{places}"/>'


def _ticks_across(axis: _Axis) -> list[str]:
    low = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{low}H{WIDTH - RIGHT}"/>']
    for value in axis.ticks():
        text = _short(value)
        parts.append(_text(axis.at(value), low + 16, "middle", text))
    return [*parts, _text(WIDTH - RIGHT, HEIGHT - 4, "end", "step")]


def _ticks_up(axis: _Axis) -> list[str]:
    parts = [_text(4, HEIGHT - 4, "start", "loss")]
    for value in axis.ticks():
        y = axis.at(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 6, y + 4, "end", _short(value)))
    return parts


def _text(x: float, y: float, anchor: str, words: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'


def _short(value: float) -> str:
    """A tick's number in at most six letters."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.3g}"
