"""Drawings of a run: SVG written without a library, so that none need be installed."""

import math
from html import escape
from statistics import median

from bench.results import Run
from bench.targets import Target, verdicts

ROW, TOP, LEFT, WIDTH = 20, 56, 300, 560
INK, QUIET, GOOD, BAD = "#1b1f24", "#8c959f", "#1a7f37", "#bc4c00"


def ratio_chart(run: Run, part: str, title: str) -> str:
    """Return a drawing of a part's ratios: a dot at the median, a line from least to greatest, a mark at the target."""
    rows = [(target, found) for target, found in verdicts(run) if target.part == part and _drawn(target)]
    values = [value for target, found in rows for value in (*found, target.limit, 1.0) if not math.isinf(value)]
    least, most = math.floor(math.log10(min(values, default=1))), math.ceil(math.log10(max(values, default=10)))
    most = max(most, least + 1)

    def x(value: float) -> float:
        return LEFT + WIDTH * (math.log10(value) - least) / (most - least)

    height = TOP + ROW * len(rows) + 30
    drawn = [_text(12, 22, title, size=15), _text(12, 40, "gateway / peer; left of 1 the gateway takes less", QUIET)]
    for power in range(least, most + 1):
        drawn.append(_line(x(10**power), TOP - 6, x(10**power), height - 24, QUIET, 1.5 if power == 0 else 0.4))
        drawn.append(_text(x(10**power), height - 8, f"{10.0**power:g}", QUIET, anchor="middle"))
    for number, (target, found) in enumerate(rows):
        y, mid = TOP + ROW * number + 8, median(found)
        colour = INK if math.isinf(target.limit) else GOOD if target.met(mid) else BAD
        drawn.append(_text(12, y + 4, f"{target.workload} {target.of}, {target.peer}"))
        drawn.append(_line(x(min(found)), y, x(max(found)), y, colour, 2))
        drawn.append(f'<circle cx="{x(mid):.1f}" cy="{y}" r="4" fill="{colour}"/>')
        if not math.isinf(target.limit):
            drawn.append(_line(x(target.limit), y - 7, x(target.limit), y + 7, colour, 2))
        drawn.append(_text(LEFT + WIDTH + 12, y + 4, f"{mid:.2f}", colour))
    return _svg(LEFT + WIDTH + 70, height, drawn)


def _drawn(target: Target) -> bool:
    # Comparisons without a target are drawn only for CPU, because latencies in a closed loop follow from it.
    return not math.isinf(target.limit) or target.of in {"server CPU", "with PostgreSQL"}


def line_chart(title: str, x_title: str, y_title: str, series: dict[str, list[tuple[float, float]]]) -> str:
    """Return a drawing of lines over two logarithmic axes."""
    points = [point for line in series.values() for point in line]
    (x0, x1), (y0, y1) = (
        (
            math.floor(math.log10(min(axis))),
            max(math.ceil(math.log10(max(axis))), math.floor(math.log10(min(axis))) + 1),
        )
        for axis in zip(*points, strict=True)
    )
    left, top, width, height = 70, 50, 460, 280

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x, y = (math.log10(value) for value in point)
        return left + width * (x - x0) / (x1 - x0), top + height - height * (y - y0) / (y1 - y0)

    drawn = [_text(12, 22, title, size=15), _text(12, 40, f"{y_title}, over {x_title}", QUIET)]
    for power in range(x0, x1 + 1):
        x, _ = at((10.0**power, 10.0**y0))
        drawn += [_line(x, top, x, top + height, QUIET, 0.4), _text(x, top + height + 16, f"{10.0**power:,g}", QUIET)]
    for power in range(y0, y1 + 1):
        _, y = at((10.0**x0, 10.0**power))
        drawn += [_line(left, y, left + width, y, QUIET, 0.4), _text(12, y + 4, f"{10.0**power:g}", QUIET)]
    colours = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#1b1f24")
    for number, (name, line) in enumerate(series.items()):
        colour, path = colours[number % len(colours)], " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, line))
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in map(at, line)]
        drawn.append(_text(left + width + 16, top + 16 + 18 * number, name, colour))
    return _svg(left + width + 340, top + height + 30, drawn)


def _text(x: float, y: float, words: str, colour: str = INK, *, size: int = 12, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
    return f"<text {place}>{escape(words)}</text>"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {place} stroke="{colour}" stroke-width="{width}"/>'


def _svg(width: float, height: float, drawn: list[str]) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    # A white background, for pages with a dark theme.
    inside = ['<rect width="100%" height="100%" fill="#ffffff"/>', *drawn]
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">', *inside, "</svg>", ""]
    )
