"""Curves as inline SVG: small, sharp at any size, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from limbeck.report.sections import Curve, Points
from limbeck.report.values import power, show

WIDTH, HEIGHT = 330, 210
RIGHT, TOP, BOTTOM = 12, 10, 36
BINS = 160  # points drawn per line; more rows than that are drawn as the mean of each bin and a band from least to most
COLOURS = 6


@dataclass(frozen=True)
class Axis:
    """Maps values in ``low..high`` to pixels in ``start..end``, in powers of ten if ``log``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Pixel of ``value``."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Three to seven round values, or powers of ten."""
        return _powers(self.low, self.high) if self.log else _round(self.low, self.high)


def figure(curve: Curve) -> str:
    """The curve as a ``figure`` with caption, legend and a description in words for those who cannot see it."""
    series = {name: _clean(points, curve.log) for name, points in curve.series.items()}
    series = {name: points for name, points in series.items() if points[0]}
    if not series:
        return f"<figure>{_caption(curve)}<p>no values</p></figure>"
    x, y = _axes(list(series.values()), curve.log)
    drawn = [_grid(x, y, curve)]
    drawn += [_line(points, x, y, number % COLOURS) for number, points in enumerate(series.values())]
    said = escape("; ".join(_words(name, points, curve.xlabel) for name, points in series.items()))
    label = f"{escape(curve.title)}: {said}"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'
    return f"<figure>{_caption(curve)}{svg}{_legend(list(series))}</figure>"


def _caption(curve: Curve) -> str:
    unit = f' <span class="half">{escape(curve.ylabel)}</span>' if curve.ylabel not in curve.title else ""
    return f"<figcaption>{escape(curve.title)}{unit}</figcaption>"


def _clean(points: Points, log: bool) -> tuple[list[float], list[float]]:
    pairs = [(float(x), float(y)) for x, y in zip(*points, strict=True) if math.isfinite(y) and (y > 0 or not log)]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _axes(points: Sequence[Points], log: bool) -> tuple[Axis, Axis]:
    x_low, x_high = _limits([x for xs, _ in points for x in xs], 0.0, log=False)
    y_low, y_high = _limits([y for _, ys in points for y in ys], 0.05, log)
    y = Axis(y_low, y_high, HEIGHT - BOTTOM, TOP, log)
    left = 14 + 6.7 * max(len(_label(value)) for value in y.ticks())  # a digit of 12 pixels' type is 6.7 wide
    return Axis(x_low, x_high, left, WIDTH - RIGHT), y


def _limits(values: Sequence[float], margin: float, log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return (low / 1.1, high * 1.1)
    if low == high:
        return (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
    room = (high - low) * margin
    return (low - room if low < 0 or low > room else 0.0, high + room)


def _round(low: float, high: float) -> list[float]:
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / unit - 1e-9)
    return [n * unit for n in range(first, math.floor(high / unit + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    powers = [10.0**n for n in range(first, last + 1)]
    return powers if len(powers) > 1 else [low, high]


def _grid(x: Axis, y: Axis, curve: Curve) -> str:
    parts = []
    for value in y.ticks():
        at = f"{y.at(value):.1f}"
        parts.append(f'<line class="grid" x1="{x.start:.1f}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="tick" x="{x.start - 6:.1f}" y="{at}" dy="0.32em" text-anchor="end">{_label(value)}</text>'
        )
    for value in x.ticks():
        at = f"{x.at(value):.1f}"
        parts.append(
            f'<text class="tick" x="{at}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_label(value)}</text>'
        )
    middle = round((x.start + x.end) / 2, 1)
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(curve.xlabel)}</text>')
    return "".join(parts)


def _label(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return power(f"{value:.1e}").replace(".0e", "e")
    return f"{value:.6g}"


def _line(points: Points, x: Axis, y: Axis, colour: int) -> str:
    bins = _binned(points)
    middle = " ".join(f"{x.at(at):.1f},{y.at(mean):.1f}" for at, mean, _, _ in bins)
    line = f'<polyline class="line c{colour}" points="{middle}"/>'
    if len(points[0]) <= BINS:
        return line
    there = [f"{x.at(at):.1f},{y.at(most):.1f}" for at, _, _, most in bins]
    back = [f"{x.at(at):.1f},{y.at(least):.1f}" for at, _, least, _ in reversed(bins)]
    return f'<polygon class="band c{colour}" points="{" ".join(there + back)}"/>{line}'


def _binned(points: Points) -> list[tuple[float, float, float, float]]:
    """(x, mean, least, most) of at most ``BINS`` runs of neighbouring points."""
    xs, ys = points
    size = math.ceil(len(xs) / BINS)
    parts = [(xs[i : i + size], ys[i : i + size]) for i in range(0, len(xs), size)]
    return [(sum(a) / len(a), sum(b) / len(b), min(b), max(b)) for a, b in parts]


def _words(name: str, points: Points, xlabel: str) -> str:
    xs, ys = points
    return (
        f"{name} from {show(ys[0])} at {xlabel} {show(xs[0], 0)} to {show(ys[-1])} at {show(xs[-1], 0)}, "
        f"least {show(min(ys))}, most {show(max(ys))}"
    )


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    keys = (
        f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><line class="line c{number % COLOURS}" '
        f'x1="0" x2="24" y1="4" y2="4"/></svg>{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(keys)}</ul>'
