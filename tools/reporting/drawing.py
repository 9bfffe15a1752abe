"""Small charts as SVG: lines over steps and bars side by side."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from .runs import Point

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 10, 28
MOST_POINTS = 500  # of a line: more than there are pixels
FEW_POINTS = 60  # so few are marked one by one
NUM_COLOURS = 6  # c0 to c5 of page.css


def line_chart(lines: Mapping[str, Sequence[Point]], title: str) -> Markup:
    """``lines`` by their names, over steps; values that are not finite are left out."""
    kept = {name: [p for p in line if math.isfinite(p[1])] for name, line in lines.items()}
    points = [point for line in kept.values() for point in line]
    if not points:
        return Markup("")
    xs, ys = _ticks([p[0] for p in points], lowest=0), _ticks([p[1] for p in points])

    def place(point: Point) -> tuple[float, float]:
        return _scale(point[0], xs, LEFT, WIDTH - RIGHT), _scale(point[1], ys, HEIGHT - BOTTOM, TOP)

    parts = [_grid(xs, ys)]
    for number, (name, line) in enumerate(kept.items()):
        thinned = _thin(line)
        path = " ".join("{:.1f},{:.1f}".format(*place(point)) for point in thinned)
        parts.append(
            Markup('<polyline class="line c{}" points="{}"/>').format(number % NUM_COLOURS, path)
        )
        for point in thinned if len(thinned) <= FEW_POINTS else thinned[-1:]:
            x, y = (f"{value:.1f}" for value in place(point))
            label = f"{name}, step {point[0]:.0f}: {point[1]:.4g}"
            dot = '<circle class="dot c{}" cx="{}" cy="{}" r="3"><title>{}</title></circle>'
            parts.append(Markup(dot).format(number % NUM_COLOURS, x, y, label))
    return _frame(parts, f"{title} over steps")


def bar_chart(bars: Mapping[str, Sequence[float]], title: str) -> Markup:
    """Shares in percent of each bin of IoU, a bar for each name side by side."""
    num_bins = len(next(iter(bars.values())))
    xs = [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    ys = _ticks([value for values in bars.values() for value in values], lowest=0)
    slot = (WIDTH - LEFT - RIGHT) / num_bins
    width = (slot - 2) / len(bars)
    parts = [_grid(xs, ys)]
    for number, (name, values) in enumerate(bars.items()):
        for position, value in enumerate(values):
            x = LEFT + position * slot + 1 + number * width
            y = _scale(value, ys, HEIGHT - BOTTOM, TOP)
            low, high = (100 * end / num_bins for end in (position, position + 1))
            label = f"{name}: IoU {low:g} to {high:g}, {value:.1f} % of the sentences"
            bar = (
                '<rect class="bar c{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>{}</title></rect>"
            )
            height = HEIGHT - BOTTOM - y
            parts.append(Markup(bar).format(number, x, y, width, height, label))
    return _frame(parts, title)


def _frame(parts: Sequence[Markup], title: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        WIDTH, HEIGHT, escape(title)
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _grid(xs: Sequence[float], ys: Sequence[float]) -> Markup:
    parts = []
    for value in ys:
        y = _scale(value, ys, HEIGHT - BOTTOM, TOP)
        line = '<path class="grid" d="M{} {:.1f}H{}"/><text class="y" x="{}" y="{:.1f}">{}</text>'
        label = f"{value:.4g}"
        parts.append(Markup(line).format(LEFT, y, WIDTH - RIGHT, LEFT - 6, y + 4, label))
    for value in xs:
        x = _scale(value, xs, LEFT, WIDTH - RIGHT)
        text = Markup('<text class="x" x="{:.1f}" y="{}">{:,.6g}</text>')
        parts.append(text.format(x, HEIGHT - 8, value))
    return Markup("").join(parts)


def _ticks(values: Sequence[float], lowest: float | None = None) -> list[float]:
    """Four to nine round numbers around all ``values``."""
    low = min(values) if lowest is None else lowest
    high = max(*values, low)
    if high == low:
        high = low + (abs(low) or 1)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * number for number in range(first, last + 1)]


def _scale(value: float, ticks: Sequence[float], start: float, end: float) -> float:
    return start + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start)


def _thin(line: Sequence[Point]) -> list[Point]:
    """At most ``MOST_POINTS``: means of as many neighbours as that takes."""
    size = math.ceil(len(line) / MOST_POINTS) or 1
    parts = [line[start : start + size] for start in range(0, len(line), size)]
    return [(part[-1][0], math.fsum(p[1] for p in part) / len(part)) for part in parts]
