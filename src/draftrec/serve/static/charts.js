// Lines and bars with uPlot: colours from the style sheet, as wide as their place, drawn anew only
// when their series change.

/** Steps between ticks of seconds that people count in. */
const SECONDS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400];

const drawn = new Map();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Resolve `var(--c1)` for a canvas, which knows no style sheet. */
const paint = (tone) => (tone.startsWith("var(") ? colour(tone.slice(4, -1)) : tone);

/**
 * Draw curves into a host. `series`: [{name, tone, dashed, x: [...], y: [...]}]; `form` writes a
 * value of the y axis; `xForm` one of the x axis; `bars` draws bars instead of lines; `hover` is
 * told the values under the pointer, or null.
 */
export function chart(host, { series, form, xForm, label, bars = false, hover = () => {} }) {
  host.setAttribute("aria-label", label);
  const data = align(series);
  const key = JSON.stringify([series.map((s) => [s.name, s.tone, s.dashed]), bars, theme(), form(0.5)]);
  const old = drawn.get(host);
  if (old && old.key === key) {
    old.hover = hover;
    old.plot.setData(data);
    return;
  }
  old?.plot.destroy();
  const entry = { key, hover, plot: null };
  const told = (plot) => entry.hover(plot.cursor.idx == null ? null : nearest(plot));
  entry.plot = new uPlot(options(host, series, { form, xForm, bars, told }), data, host);
  drawn.set(host, entry);
  observer.observe(host);
}

/** Take a chart away, where nothing is left to draw. */
export function clear(host) {
  drawn.get(host)?.plot.destroy();
  drawn.delete(host);
}

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
    drawn.get(target)?.plot.setSize({ width: target.clientWidth, height: target.clientHeight });
  }
});

function theme() {
  return colour("--page");
}

function align(series) {
  if (!series.length) return [[0], [null]];
  return uPlot.join(series.map((s) => [s.x, s.y]));
}

function options(host, series, { form, xForm, bars, told }) {
  const axis = {
    stroke: colour("--soft"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1, size: 4 },
    font: "12px system-ui, sans-serif",
  };
  return {
    width: host.clientWidth,
    height: host.clientHeight,
    legend: { show: false },
    hooks: { setCursor: [told] },
    cursor: { drag: { x: false, y: false }, y: false },
    scales: {
      x: { time: false, range: bars ? barRange : lineRange },
      y: { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.08 : 1] },
    },
    axes: [
      { ...axis, size: 32, space: 60, incrs: bars ? [1, 2, 5, 10] : SECONDS, grid: { show: false }, values: (_, ticks) => ticks.map(xForm) },
      { ...axis, size: 62, values: (_, ticks) => ticks.map(form) },
    ],
    series: [{}, ...series.map((s, place) => one(s, place, series.length, bars))],
  };
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
    stroke,
    width: 2,
    spanGaps: true,
    dash: series.dashed ? [6, 5] : undefined,
    points: { show: few && !series.dashed, size: 5, fill: stroke },
  };
}
