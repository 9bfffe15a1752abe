"""Lay out small charts of lines and bars, which the template draws as SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

LEFT, RIGHT, TOP, BOTTOM = 56, 436, 10, 202  # of the axes, in pixels
MAX_POINTS = 500  # of a line: more than there are pixels
FEW_POINTS = 60  # so few are marked one by one
NUM_COLOURS = 6  # c0 to c5 of page.css

Point = tuple[float, float]


class Shape(NamedTuple):
    """A dot at (x, y), or a bar from there down to the axis if it has a ``width``."""

    colour: int
    x: float
    y: float
    tooltip: str
    width: float = 0.0


class Chart(NamedTuple):
    """A chart in pixels; a line is the points of one colour."""

    title: str
    label: str
    names: list[str]
    x: "Axis"
    y: "Axis"
    lines: list[list[Point]]
    shapes: list[Shape]


class Axis:
    """Round ticks around all ``values``, and their scale from ``start`` to ``end`` in pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        high = low + (abs(low) or 1) if high == low else high
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
        self.ticks = [float(tick) for tick in ticks]
        self.start, self.end = start, end

    def place(self, value: float) -> float:
        first, *_, last = self.ticks
        return self.start + (value - first) / (last - first) * (self.end - self.start)


def line_chart(title: str, lines: Mapping[str, Sequence[Point]]) -> Chart | None:
    """Lay out ``lines`` by name over steps, without infinite values; None if nothing is left."""
    finite = {name: [p for p in line if math.isfinite(p[1])] for name, line in lines.items()}
    points = [point for line in finite.values() for point in line]
    if not points:
        return None
    x_axis = Axis([0, *(x for x, _ in points)], LEFT, RIGHT)
    y_axis = Axis([y for _, y in points], BOTTOM, TOP)
    chart = Chart(title, f"{title} over steps", list(lines), x_axis, y_axis, [], [])
    for number, (name, line) in enumerate(finite.items()):
        size = math.ceil(len(line) / MAX_POINTS) or 1
        parts = [line[start : start + size] for start in range(0, len(line), size)]
        means = [(part[-1][0], math.fsum(y for _, y in part) / len(part)) for part in parts]
        chart.lines.append([(x_axis.place(x), y_axis.place(y)) for x, y in means])
        for x, y in means if len(means) <= FEW_POINTS else means[-1:]:
            place, tooltip = (x_axis.place(x), y_axis.place(y)), f"{name}, step {x:.0f}: {y:.4g}"
            chart.shapes.append(Shape(number % NUM_COLOURS, *place, tooltip))
    return chart


def bar_chart(title: str, bars: Mapping[str, Sequence[float]]) -> Chart:
    """Lay out the percentages of each bin of IoU, a bar for each name side by side."""
    y_axis = Axis([0, *(value for values in bars.values() for value in values)], BOTTOM, TOP)
    chart = Chart(title, title, list(bars), Axis([0, 100], LEFT, RIGHT), y_axis, [], [])
    for number, (name, values) in enumerate(bars.items()):
        slot = (RIGHT - LEFT) / len(values)
        width = (slot - 2) / len(bars)
        for position, value in enumerate(values):
            low, high = (100 * end / len(values) for end in (position, position + 1))
            tooltip = f"{name}: IoU {low:g} to {high:g}, {value:.1f} % of the sentences"
            x = LEFT + position * slot + 1 + number * width
            chart.shapes.append(Shape(number, x, y_axis.place(value), tooltip, width))
    return chart
