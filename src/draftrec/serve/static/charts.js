// Lines and bars with uPlot: colours from the style sheet, as wide as their place, drawn anew only
// when their series change. Drag over a chart, or + - and arrows on the keyboard, to see a part of it.

/** Steps between ticks of seconds that people count in. */
const SECONDS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400];
/** Of which every multiple is told in the digits of the step itself, as 2.5 is not. */
const STEPS = Array.from({ length: 24 }, (_, i) => 10 ** (i - 9)).flatMap((n) => [n, 2 * n, 5 * n].map((v) => Number(v.toPrecision(1))));
const COUNTS = [1, 2, 5].flatMap((n) => Array.from({ length: 12 }, (_, i) => n * 10 ** i)).sort((a, b) => a - b);

const drawn = new Map();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Resolve `var(--c1)` for a canvas, which knows no style sheet. */
const paint = (tone) => (tone.startsWith("var(") ? colour(tone.slice(4, -1)) : tone);

/**
 * Draw curves into a host. `series`: [{name, tone, dashed, faint, x: [...], y: [...]}]; `form` writes
 * a value of the y axis, given how far apart ticks are, or not; `xForm` one of the x axis; `bars` draws bars instead of lines; `hover` is
 * told the values under the pointer, or null. `log`: the y axis by powers of ten; `counted`: x counts
 * something else than seconds; `whole`: y counts, so that no tick is a part of one; `titles`: what lies along x and y; `range`: [from, to] of x to show, null for all; `zoom`: told another
 * one that was asked for.
 */
export function chart(host, { series, form, xForm, label, bars = false, hover = () => {}, log = false, counted = false, whole = false, titles = [], range = null, zoom = null }) {
  host.setAttribute("aria-label", label);
  const data = align(series, log);
  const key = JSON.stringify([series.map((s) => [s.name, s.tone, s.dashed, s.faint]), bars, theme(), form(0.5), log, counted, titles, xForm(3601)]);
  const old = drawn.get(host);
  if (old && old.key === key) {
    Object.assign(old, { hover, range, zoom });
    old.plot.setData(data);
    return;
  }
  old?.plot.destroy();
  const entry = { key, hover, range, zoom, plot: null };
  const told = (plot) => entry.hover(plot.cursor.idx == null ? null : nearest(plot));
  entry.plot = new uPlot(options(host, series, { form, xForm, bars, told, log, counted, whole, titles, entry }), data, host);
  drawn.set(host, entry);
  observer.observe(host);
  if (zoom && !host.onkeydown) host.onkeydown = (event) => steer(host, event);
}

/** Take a chart away, where nothing is left to draw. */
export function clear(host) {
  drawn.get(host)?.plot.destroy();
  drawn.delete(host);
}

/** Look closer or from further away, `factor` of the width around the middle; shift by a part of it. */
export function rescale(host, factor, shift = 0) {
  const entry = drawn.get(host);
  if (!entry?.zoom) return;
  const all = whole(entry.plot);
  const [from, to] = entry.range ?? all;
  const middle = (from + to) / 2 + shift * (to - from);
  const half = (factor * (to - from)) / 2;
  const [low, high] = [Math.max(all[0], middle - half), Math.min(all[1], middle + half)];
  if (high > low) entry.zoom(low <= all[0] && high >= all[1] ? null : [low, high]);
}

function steer(host, event) {
  const ways = { "+": [0.5], "=": [0.5], "-": [2], ArrowLeft: [1, -0.25], ArrowRight: [1, 0.25] };
  if (event.key === "0" || event.key === "Escape") drawn.get(host)?.zoom?.(null);
  else if (ways[event.key] && !event.ctrlKey && !event.metaKey) rescale(host, ...ways[event.key]);
  else return;
  event.preventDefault();
}

const whole = (plot) => [plot.data[0][0] ?? 0, plot.data[0].at(-1) ?? 1];

/** The last known value of each series at the pointer: runs have their own seconds. */
function nearest(plot) {
  return plot.data.slice(1).map((values) => {
    let place = plot.cursor.idx;
    while (place > 0 && values[place] == null) place -= 1;
    return values.slice(plot.cursor.idx).some((v) => v != null) ? values[place] : null;
  });
}

const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.clientWidth) drawn.get(target)?.plot.setSize({ width: target.clientWidth, height: target.clientHeight });
  }
});

function theme() {
  return colour("--page");
}

function align(series, log) {
  if (!series.length) return [[0], [null]];
  // Nothing has no logarithm.
  const told = (y) => (log ? y.map((v) => (v > 0 ? v : null)) : y);
  return uPlot.join(series.map((s) => [s.x, told(s.y)]));
}

function options(host, series, { form, xForm, bars, told, log, counted, whole: units, titles, entry }) {
  const axis = {
    stroke: colour("--soft"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1, size: 4 },
    font: "12px system-ui, sans-serif",
  };
  const named = (title) => (title ? { label: title, labelSize: 20, labelFont: axis.font } : {});
  const select = (plot) => {
    const { left, width } = plot.select;
    if (width < 4) return;
    const asked = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    entry.zoom?.(asked);
  };
  const lines = (_, low, high) => entry.range ?? lineRange(_, low, high);
  return {
    width: host.clientWidth || 600,
    height: host.clientHeight || 200,
    legend: { show: false },
    hooks: { setCursor: [told], setSelect: [select] },
    cursor: { drag: { x: Boolean(entry.zoom), y: false, setScale: false }, y: false, bind: { dblclick: () => () => entry.zoom?.(null) } },
    scales: {
      x: { time: false, range: bars ? barRange : lines },
      y: log
        ? { distr: 3, range: (_, low, high) => uPlot.rangeLog(low > 0 ? low : 0.001, high > 0 ? high : 1, 10, false) }
        : { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.08 : 1] },
    },
    axes: [
      { ...axis, ...named(titles[0]), size: 32, space: 64, incrs: bars ? [1, 2, 5, 10] : counted ? COUNTS : SECONDS, grid: { show: false }, values: (_, ticks) => ticks.map(xForm) },
      { ...axis, ...named(titles[1]), size: 62, ...(log ? {} : { incrs: units ? COUNTS : STEPS }), values: (_, ticks, _axis, _space, step) => ticks.map((tick) => (tick === null ? "" : form(tick, log ? undefined : step))) },
    ],
    series: [{}, ...series.map((s, place) => one(s, place, series.length, bars))],
  };
}

/** Values between gaps, which no line shows; all of them (null) where points are shown anyway. */
function alone(plot, place, shown) {
  if (shown) return null;
  const values = plot.data[place];
  return values.flatMap((v, i) => (v != null && values[i - 1] == null && values[i + 1] == null ? [i] : []));
}

const lineRange = (_, low, high) => [low ?? 0, high > (low ?? 0) ? high : (low ?? 0) + 1];
const barRange = (_, low, high) => [(low ?? 0) - 0.6, (high ?? 1) + 0.6];

function one(series, place, count, bars) {
  const stroke = paint(series.tone);
  if (bars) {
    const width = 0.8 / count;
    const paths = uPlot.paths.bars({ size: [width, 60], align: count === 1 ? 0 : place === 0 ? -1 : 1 });
    return { label: series.name, stroke, fill: stroke, paths, points: { show: false } };
  }
  const few = series.x.length <= 40;
  return {
    label: series.name,
    stroke: series.faint ? `${stroke}44` : stroke,
    width: series.faint ? 1 : 2,
    spanGaps: !series.gaps,
    dash: series.dashed ? [6, 5] : undefined,
    points: { show: few && !series.dashed && !series.faint, size: 5, fill: stroke, filter: series.gaps ? alone : undefined },
  };
}
