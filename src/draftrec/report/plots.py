"""Small plots as inline SVG: bars with spread, lines, histograms, shares, clouds of points.

Nothing is drawn but shapes with class names; colours, light or dark, come from the page's style
sheet (`page.css`). Every plot carries a title and a description for those who cannot see it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 460
_LETTER = 6.3  # pixels that a letter of the 12 pixel label font takes, roughly
_WIDEST = 1.25  # times as wide on phones, where letters are larger, in a wide font
_GUTTER = 210  # the most that names on the left take of a plot
_LEGEND = 22  # pixels of a line of a legend


@dataclass(frozen=True, slots=True)
class Labels:
    """Words on and around a plot. `x` and `y` name the axes with their units."""

    title: str
    description: str
    x: str = ""
    y: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, with an optional spread from `low` to `high`. `tone` picks a colour, 0 to 5."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    tone: int = 1
    note: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one line, or the counts of one histogram at the integers `x`."""

    label: str
    x: Seq[float]
    y: Seq[float]
    tone: int = 1


@dataclass(frozen=True, slots=True)
class Stack:
    """One bar divided into named parts; the parts are shown as shares of their sum."""

    label: str
    parts: Seq[tuple[str, float]]


def bars(data: Seq[Bar], labels: Labels, reference: float | None = None) -> Markup:
    """Horizontal bars from zero, values written out; `reference` draws a dashed line."""
    left, top, step = _gutter(b.label for b in data), 10, 44
    notes = [bar.note or _number(bar.value) for bar in data]
    right = max(70.0, 16 + 1.25 * max(map(_length, notes)))  # they are bold
    bottom = top + step * len(data)
    ticks = _ticks(max([b.high or b.value for b in data] + [reference or 0.0]), 5)
    scale = _Scale(0.0, ticks[-1], left, WIDTH - right)
    parts = [_x_axis(scale, ticks, top, bottom, labels.x)]
    for i, (bar, note) in enumerate(zip(data, notes, strict=True)):
        y = top + step * i + step / 2
        parts.append(_text(left - 10, y + 4, _short(bar.label, left - 24), "label end"))
        width = max(1.0, scale(bar.value) - left)
        parts.append(_shape("rect", f"c{bar.tone}", x=left, y=y - 11, width=width, height=22, rx=3))
        parts.append(_whisker(scale, bar, y))
        edge = scale(max(bar.value, bar.high or 0.0))
        parts.append(_text(edge + 8, y + 4, note, "value"))
    if reference is not None:
        x = scale(reference)
        parts.append(_shape("line", "reference", x1=x, x2=x, y1=top, y2=bottom))
    return _svg(parts, bottom + (44 if labels.x else 26), labels)


def lines(series: Seq[Series], labels: Labels, *, doubling: bool = False) -> Markup:
    """Lines through marked points, y from zero. `doubling` spaces powers of two evenly on x."""
    legend = [(s.label, s.tone) for s in series]
    left, right, (top, bottom) = 52, WIDTH - 18, _under(legend, 236)
    xs = sorted({x for s in series for x in s.x})
    ticks = _ticks(max(max(s.y) for s in series), 4)
    across = _Scale(xs[0], xs[-1], left + 12, right - 12, doubling=doubling)
    up = _Scale(0.0, ticks[-1], bottom, top)
    parts = [_y_axis(up, ticks, left, right, labels.y)]
    marks = _spaced(_powers(xs[0], xs[-1]) or xs if doubling else xs, across)
    parts += [_text(across(x), bottom + 18, _number(x), "tick middle") for x in marks]
    parts.append(_text((left + right) / 2, bottom + 38, labels.x, "axis middle"))
    for one in series:
        points = [(across(x), up(y)) for x, y in zip(one.x, one.y, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(_shape("polyline", f"line s{one.tone}", points=path))
        parts += [_shape("circle", f"c{one.tone} dot", cx=x, cy=y, r=3.5) for x, y in points]
    parts.append(_legend(legend))
    return _svg(parts, bottom + 48, labels)


def histogram(series: Seq[Series], labels: Labels, most: int = 16) -> Markup:
    """Shares in percent of counts at 0, 1, 2 ...; whatever lies past `most` joins the last bin."""
    legend = [(s.label, s.tone) for s in series]
    left, right, (top, bottom) = 52, WIDTH - 12, _under(legend, 236)
    folded = [_fold(one, most) for one in series]
    bins = max(len(f) for f in folded)
    ticks = _ticks(max(max(f, default=0.0) for f in folded) or 1.0, 4)
    up = _Scale(0.0, ticks[-1], bottom, top)
    slot = (right - left) / bins
    width = slot * 0.78 / len(series)
    parts = [_y_axis(up, ticks, left, right, labels.y)]
    for place, (one, shares) in enumerate(zip(series, folded, strict=True)):
        for i, share in enumerate(shares):
            x, y = left + slot * (i + 0.11) + width * place, up(share)
            parts.append(
                _shape("rect", f"c{one.tone}", x=x, y=y, width=width, height=bottom - y, rx=1)
            )
    more = any(max(one.x, default=0) > most for one in series)
    every = 1 if bins <= 17 else 2
    for i in range((bins - 1) % every if more else 0, bins, every):
        name = f"{i}+" if more and i == bins - 1 else str(i)
        parts.append(_text(left + slot * (i + 0.5), bottom + 18, name, "tick middle"))
    parts.append(_text((left + right) / 2, bottom + 38, labels.x, "axis middle"))
    parts.append(_legend(legend))
    return _svg(parts, bottom + 48, labels)


def shares(data: Seq[Stack], labels: Labels, first_tone: int = 3) -> Markup:
    """One full-width bar per stack, divided by the parts' shares; parts keep their colours."""
    drawn = {name for s in data for name, value in s.parts if value > 0}
    names = [n for n in dict.fromkeys(n for s in data for n, _ in s.parts) if n in drawn]
    tones = {name: (first_tone + i) % 6 for i, name in enumerate(names)}
    legend = list(tones.items())
    left, right, step = _gutter(s.label for s in data), WIDTH - 18, 58
    top = 18 + _LEGEND * max(1, len(_legend_rows(legend)))
    parts = [_legend(legend)]
    for i, stack in enumerate(data):
        y = top + step * i + step / 2
        parts.append(_text(left - 10, y + 4, _short(stack.label, left - 24), "label end"))
        total, x = sum(value for _, value in stack.parts), float(left)
        for name, value in stack.parts:
            if value <= 0:
                continue
            width = (right - left) * value / total
            box = {"x": x, "y": y - 17, "width": width, "height": 34}
            parts.append(_shape("rect", f"c{tones[name]} part", **box))
            if width > 34:
                label = f"{100 * value / total:.0f} %"
                parts.append(_text(x + width / 2, y + 4, label, "inside middle"))
            x += width
    bottom = top + step * len(data)
    parts.append(_text((left + right) / 2, bottom + 20, labels.x, "axis middle"))
    return _svg(parts, bottom + (30 if labels.x else 8), labels)


def scatter(
    series: Seq[Series], labels: Labels, edge: Series | None = None, limit: float | None = None
) -> Markup:
    """Points by kind, on axes that span them; `edge` is a line, `limit` a dashed one across x."""
    legend = [(s.label, s.tone) for s in series]
    left, right, (top, bottom) = 52, WIDTH - 26, _under(legend, 266)
    xs, ys = [x for s in series for x in s.x], [y for s in series for y in s.y]
    x_ticks = _ticks_between(xs if limit is None else [*xs, limit], 5)
    y_ticks = _ticks_between(ys, 5)
    across = _Scale(x_ticks[0], x_ticks[-1], left, right)
    up = _Scale(y_ticks[0], y_ticks[-1], bottom, top)
    parts = [_y_axis(up, y_ticks, left, right, labels.y)]
    parts.append(_x_axis(across, x_ticks, top, bottom, labels.x))
    if limit is not None:
        x = across(limit)
        parts.append(_shape("line", "reference", x1=x, x2=x, y1=top, y2=bottom))
    if edge is not None:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(edge.x, edge.y, strict=True))
        parts.append(_shape("polyline", f"line s{edge.tone}", points=path))
    for one in series:
        for x, y in zip(one.x, one.y, strict=True):
            parts.append(_shape("circle", f"c{one.tone} dot", cx=across(x), cy=up(y), r=4.5))
    parts.append(_legend(legend))
    return _svg(parts, bottom + 48, labels)


class _Scale:
    """From data to pixels, linear or in powers of two."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, doubling: bool = False
    ) -> None:
        self._warp = (lambda v: math.log2(max(v, 1e-9))) if doubling else float
        self._low, self._span = self._warp(low), (self._warp(high) - self._warp(low)) or 1.0
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (self._warp(value) - self._low) / self._span
        return self._start + share * (self._end - self._start)


def _ticks(high: float, about: int) -> list[float]:
    """Round numbers from zero to at least `high`; to 1 where all is zero."""
    high = high if high > 0 else 1.0
    step = _round_step(max(high, 1e-9) / about)
    return [i * step for i in range(math.ceil(high / step * 0.999) + 1)]


def _ticks_between(values: Seq[float], about: int) -> list[float]:
    """Two or more round numbers, from at most the lowest value to at least the highest; values
    that differ by less than a hundredth are shown as the one that they nearly are."""
    low, high = min(values), max(values)
    step = _round_step(max(high - low, 1e-9, 1e-2 * abs(high)) / about)
    first, last = math.floor(low / step + 0.001), math.ceil(high / step - 0.001)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _round_step(raw: float) -> float:
    """The next of 1, 2, 2.5, 5, 10 times a power of ten."""
    size = 10.0 ** math.floor(math.log10(raw))
    return next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)


def _powers(low: float, high: float) -> list[float]:
    """Powers of two from `low` to `high`, measured or not: an axis names all of its length. None
    where there are fewer than two."""
    first, last = math.ceil(math.log2(max(low, 1))), math.floor(math.log2(max(high, 1)))
    return [2.0**power for power in range(first, last + 1)] if last > first else []


def _spaced(values: Seq[float], scale: _Scale, apart: float = 30.0) -> list[float]:
    """Those values whose labels do not run into one another."""
    kept: list[float] = []
    for value in values:
        if not kept or abs(scale(value) - scale(kept[-1])) >= apart:
            kept.append(value)
    return kept


def _fold(series: Series, most: int) -> list[float]:
    total = sum(series.y) or 1.0
    last = min(most, int(max(series.x, default=0)))
    out = [0.0] * (last + 1)
    for x, y in zip(series.x, series.y, strict=True):
        out[min(int(x), most)] += 100.0 * y / total
    return out


def _gutter(names: Iterable[str]) -> float:
    return min(_GUTTER, 24 + max(map(_length, names), default=0.0))


def _length(text: str) -> float:
    """Pixels that a label takes, roughly; those of Chinese, Japanese and Korean are wide."""
    return _LETTER * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _short(text: str, room: float) -> str:
    """The text, or its two ends where it is longer than `room` pixels."""
    if _length(text) <= room + 0.1:
        return text
    ends = len(text) // 2
    while ends and _length(f"{text[:ends]}…{text[-ends:]}") > 0.9 * room:  # fonts differ
        ends -= 1
    return f"{text[:ends]}…{text[-ends:]}" if ends else "…"


def _number(value: float) -> str:
    """Three digits or more, and no powers of ten but of what is tiny."""
    if abs(value) >= 999_999.5:
        return f"{value / 1e6:,.{2 if abs(value) < 1e7 else 0}f}M"
    if value == int(value) or abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _tick_words(ticks: Seq[float]) -> list[str]:
    """Each with the places that tell it from the next."""
    size, unit = (1e6, "M") if max(map(abs, ticks)) >= 1e6 else (1.0, "")
    places = max(0, 1 - math.floor(math.log10((ticks[1] - ticks[0]) / size) + 1e-9))
    if places > 7:
        return [_number(tick) for tick in ticks]
    words = [f"{tick / size:,.{places}f}" for tick in ticks]
    words = [word.rstrip("0").rstrip(".") if "." in word else word for word in words]
    return [word if word in ("0", "-0") else word + unit for word in words]


def _x_axis(scale: _Scale, ticks: Seq[float], top: float, bottom: float, name: str) -> Markup:
    parts: list[Markup] = []
    words = _tick_words(ticks)
    apart = scale(ticks[1]) - scale(ticks[0])
    every = math.ceil((max(map(_length, words)) + 6) / apart)
    for i, (tick, word) in enumerate(zip(ticks, words, strict=True)):
        x = scale(tick)
        parts.append(_shape("line", "grid", x1=x, x2=x, y1=top, y2=bottom))
        parts.append(_text(x, bottom + 16, "" if i % every else word, "tick middle"))
    middle = (scale(ticks[0]) + scale(ticks[-1])) / 2
    return Markup("").join([*parts, _text(middle, bottom + 36, name, "axis middle")])


def _y_axis(scale: _Scale, ticks: Seq[float], left: float, right: float, name: str) -> Markup:
    parts: list[Markup] = []
    for tick, word in zip(ticks, _tick_words(ticks), strict=True):
        y = scale(tick)
        parts.append(_shape("line", "grid", x1=left, x2=right, y1=y, y2=y))
        parts.append(_text(left - 8, y + 4, word, "tick end"))
    middle = (scale(ticks[0]) + scale(ticks[-1])) / 2
    turned = Markup('<g transform="translate(13 {:.1f}) rotate(-90)">{}</g>')
    return Markup("").join([*parts, turned.format(middle, _text(0, 0, name, "axis middle"))])


def _whisker(scale: _Scale, bar: Bar, y: float) -> Markup:
    if bar.low is None or bar.high is None or bar.high <= bar.low:
        return Markup("")
    low, high = scale(bar.low), scale(bar.high)
    ends = [_shape("line", "spread", x1=x, x2=x, y1=y - 5, y2=y + 5) for x in (low, high)]
    return Markup("").join([_shape("line", "spread", x1=low, x2=high, y1=y, y2=y), *ends])


def _under(legend: Seq[tuple[str, int]], bottom: float) -> tuple[float, float]:
    """Top and bottom of a plot below its legend, `bottom` where that takes a line at most."""
    rows = len(_legend_rows(legend))
    return 12 + _LEGEND * rows, bottom + _LEGEND * max(0, rows - 1)


def _legend_rows(entries: Seq[tuple[str, int]]) -> list[list[tuple[float, str, int]]]:
    """Lines of a legend: where each entry begins, its label and tone. None for a single entry."""
    rows: list[list[tuple[float, str, int]]] = []
    x = float(WIDTH)
    for label, tone in entries if len(entries) > 1 else ():
        shown = _short(label, (WIDTH - 40) / _WIDEST)
        length = 17 + _WIDEST * _length(shown)
        if x + length > WIDTH:
            rows.append([])
            x = 12.0
        rows[-1].append((x, shown, tone))
        x += length + 18
    return rows


def _legend(entries: Seq[tuple[str, int]]) -> Markup:
    parts: list[Markup] = []
    for line, row in enumerate(_legend_rows(entries)):
        y = _LEGEND * line
        for x, label, tone in row:
            parts.append(_shape("rect", f"c{tone}", x=x, y=y + 6, width=11, height=11, rx=2))
            parts.append(_text(x + 17, y + 16, label, "label"))
    return Markup("").join(parts)


def _shape(tag: str, names: str, **attributes: float | str) -> Markup:
    pairs = (
        (key, f"{value:.1f}" if isinstance(value, int | float) else value)
        for key, value in attributes.items()
    )
    written = Markup(" ").join(Markup('{}="{}"').format(key, value) for key, value in pairs)
    return Markup('<{} class="{}" {}/>').format(tag, names, written)


def _text(x: float, y: float, content: str, names: str) -> Markup:
    if not content:
        return Markup("")
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(names, x, y, content)


def _svg(parts: Iterable[Markup], height: float, labels: Labels) -> Markup:
    head = Markup('<svg class="plot" role="img" viewBox="0 0 {} {:.0f}" aria-label="{}">').format(
        WIDTH, height, labels.title
    )
    words = Markup("<title>{}</title><desc>{}</desc>").format(labels.title, labels.description)
    return head + words + Markup("").join(parts) + Markup("</svg>")
