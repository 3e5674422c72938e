"""A picture of a run, as SVG: what broke, how much got done meanwhile, and how long it took, on one axis of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_LEFT, _RIGHT, _WIDTH = 120, 15, 1000
_ROW, _PANEL, _GAP = 16, 110, 34
_INK, _FAINT, _DONE, _SLOW = "#555", "#e4e4e4", "#3a7ca5", "#c77d0a"


@dataclass(frozen=True, slots=True)
class Span:
    """Something was so from then to then."""

    row: str
    begin: float
    end: float
    colour: str
    text: str


class _Canvas:
    """Shapes, and the scale of time."""

    def __init__(self, seconds: float) -> None:
        self.parts: list[str] = []
        self.seconds = max(seconds, 1.0)

    def x(self, t: float) -> float:
        return _LEFT + min(max(t, 0.0), self.seconds) / self.seconds * (_WIDTH - _LEFT - _RIGHT)

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", colour: str = _INK) -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" fill="{colour}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_FAINT}"/>'
        )

    def box(self, x: float, y: float, width: float, height: float, colour: str, title: str = "") -> None:
        inner = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.3):.1f}" height="{height:.1f}" fill="{colour}">'
            f"{inner}</rect>"
        )

    def curve(self, points: Iterable[tuple[float, float]], colour: str) -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="1.3"/>')


def picture(
    seconds: float,
    rows: Sequence[str],
    spans: Sequence[Span],
    settled: Sequence[tuple[float, float]],
) -> str:
    """``settled``: when each payment was, and how long that took, in seconds."""
    canvas = _Canvas(seconds)
    top = 14 + _faults(canvas, rows, spans)
    bucket = max(1, round(seconds / 200))
    counts, waits = _buckets(settled, seconds, bucket)
    top = _throughput(canvas, top + _GAP, counts, bucket)
    top = _latency(canvas, top + _GAP, waits, bucket)
    _clock(canvas, top)
    height = top + 24
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" font-family="system-ui, sans-serif">'
        + "".join(canvas.parts)
        + "</svg>"
    )


def _faults(canvas: _Canvas, rows: Sequence[str], spans: Sequence[Span]) -> float:
    for number, row in enumerate(rows):
        y = 14 + number * _ROW
        canvas.text(_LEFT - 8, y + 12, row, anchor="end")
        canvas.line(_LEFT, y + _ROW, _WIDTH - _RIGHT, y + _ROW)
    for span in spans:
        x = canvas.x(span.begin)
        width = max(canvas.x(span.end) - x, 2.0)
        canvas.box(x, 14 + rows.index(span.row) * _ROW + 3, width, _ROW - 5, span.colour, span.text)
    return len(rows) * _ROW


def _buckets(
    settled: Sequence[tuple[float, float]], seconds: float, bucket: int
) -> tuple[list[int], list[list[float]]]:
    waits: list[list[float]] = [[] for _ in range(int(seconds // bucket) + 1)]
    for when, wait in settled:
        waits[min(int(max(when, 0.0) // bucket), len(waits) - 1)].append(wait)
    return [len(those) for those in waits], waits


def _throughput(canvas: _Canvas, top: float, counts: Sequence[int], bucket: int) -> float:
    most = max([1.0, *(count / bucket for count in counts)])
    bottom = top + _PANEL
    canvas.text(_LEFT, top - 6, "payments settled in a second", colour=_DONE)
    for part in (0.5, 1.0):
        y = bottom - part * _PANEL
        canvas.line(_LEFT, y, _WIDTH - _RIGHT, y)
        canvas.text(_LEFT - 8, y + 4, f"{most * part:,.0f}", anchor="end")
    for number, count in enumerate(counts):
        x = canvas.x(number * bucket)
        tall = count / bucket / most * _PANEL
        width = canvas.x((number + 1) * bucket) - x - 0.4
        canvas.box(
            x, bottom - tall, width, tall, _DONE, f"{number * bucket} s: {count / bucket:,.0f} a second"
        )
    return bottom


def _latency(canvas: _Canvas, top: float, waits: Sequence[Sequence[float]], bucket: int) -> float:
    """Logarithmic, from a millisecond to a hundred seconds: halves and slowest."""
    bottom, decades = top + _PANEL, 5

    def y(wait: float) -> float:
        exponent = len(str(int(max(wait, 0.001) * 1000))) - 1
        fraction = max(wait, 0.001) * 1000 / 10**exponent
        return bottom - min(exponent + (fraction - 1) / 9, decades) / decades * _PANEL

    canvas.text(_LEFT, top - 6, "how long a client waited for a fact: half of them", colour=_DONE)
    canvas.text(_LEFT + 275, top - 6, "the slowest", colour=_SLOW)
    for exponent, label in enumerate(("1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s")):
        line = bottom - exponent / decades * _PANEL
        canvas.line(_LEFT, line, _WIDTH - _RIGHT, line)
        canvas.text(_LEFT - 8, line + 4, label, anchor="end")
    middles = [(canvas.x((n + 0.5) * bucket), sorted(those)) for n, those in enumerate(waits) if those]
    canvas.curve(((x, y(those[-1])) for x, those in middles), _SLOW)
    canvas.curve(((x, y(those[len(those) // 2])) for x, those in middles), _DONE)
    return bottom


def _clock(canvas: _Canvas, top: float) -> None:
    steps = (5, 10, 20, 30, 60, 120, 300, 600, 1_800, 3_600)
    step = next((step for step in steps if canvas.seconds / step <= 12), steps[-1])
    for number in range(int(canvas.seconds // step) + 1):
        canvas.text(canvas.x(number * step), top + 16, f"{number * step} s", anchor="middle")
