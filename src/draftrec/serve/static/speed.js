// Curves over the seconds of work, and where tokens and time went.

import { chart, clear, rescale } from "./charts.js";
import { $, fill, legend, show, stackBar, table } from "./dom.js";
import { clock, duration, number, percent, places, ratio, short, timeOfDay } from "./format.js";
import { choose, chosen } from "./view.js";

const MEASURES = {
  tokens_per_second: ["tokens per second", (v, step) => (step ? number(v, places(step)) : short(v))],
  tokens_per_call: ["tokens per call", (v, step) => number(v, step ? places(step) : v < 10 ? 1 : 0)],
  acceptance_rate: ["acceptance rate", (v, step) => percent(v, step ? places(100 * step) : 0)],
  relaxed_share: ["relaxed share", (v, step) => percent(v, step ? places(100 * step) : 1)],
  batch: ["texts at once", (v) => number(v)],
};
export const SOURCES = {
  prompt: ["own prompt and text", "var(--c2)"],
  previous: ["previous text", "var(--c4)"],
  group: ["group pool", "var(--c3)"],
  all: ["pool of all", "var(--c1)"],
  grammar: ["forced by the grammar", "var(--c5)"],
  head: ["learned drafter", "var(--c6)"],
};
const PHASES = {
  verify_seconds: ["passes of the model", "var(--c1)"],
  prefill_seconds: ["prompts", "var(--c4)"],
  draft_seconds: ["drafting", "var(--c2)"],
};
const ROWS = 12;

/** What lies along the x axis, so that runs can be laid over each other. */
const CLOCKS = {
  work: ["seconds of work", "the seconds of work of each run", clock, (run) => [0, ...run.curves.seconds]],
  tokens: ["tokens written", "the tokens that each run had written", (v) => number(v), (run) => [0, ...run.curves.tokens]],
  start: ["time since its start", "the time since each run began, pauses included", clock, (run) => since(run, startOf(run))],
  day: ["time of day", "the time of day", timeOfDay, (run) => since(run, 0)],
};

const startOf = (run) => run.curves.at[0] - run.curves.seconds[0];
const since = (run, start) => [startOf(run), ...run.curves.at].map((at) => at - start);
const timed = (run) => run.curves.seconds.length && run.curves.at.every((at, i, all) => at > 0 && (i === 0 || at >= all[i - 1]));

/** Offer what can be shown; the choice is kept in the address. */
export function offerMeasures() {
  $("measure").replaceChildren(...Object.entries(MEASURES).map(([key, [name]]) => new Option(name, key)));
  $("clock").replaceChildren(...Object.entries(CLOCKS).map(([key, [name]]) => new Option(name, key)));
  $("measure").addEventListener("change", () => choose({ measure: $("measure").value }));
  $("clock").addEventListener("change", () => choose({ clock: $("clock").value, from: null, to: null }));
  $("smooth").addEventListener("input", () => choose({ smooth: $("smooth").value === "0" ? null : $("smooth").value }));
  $("log").addEventListener("change", () => choose({ log: $("log").checked ? "1" : null }));
  $("zoom-in").addEventListener("click", () => rescale($("speed-chart"), 0.5));
  $("zoom-out").addEventListener("click", () => rescale($("speed-chart"), 2));
  $("zoom-all").addEventListener("click", () => zoom(null));
}

const zoom = (range) => choose({ from: range ? String(round(range[0])) : null, to: range ? String(round(range[1])) : null });
const round = (value) => Math.round(value * 1000) / 1000;
const known = (table, key) => (Object.hasOwn(table, key) ? key : Object.keys(table)[0]);

export function drawSpeed(runs) {
  const key = known(MEASURES, chosen("measure"));
  const against = known(CLOCKS, chosen("clock"));
  const smooth = Math.min(0.95, Math.max(0, Number(chosen("smooth", "0")) || 0));
  const log = chosen("log") === "1";
  $("measure").value = key;
  $("clock").value = against;
  $("smooth").value = String(smooth);
  $("log").checked = log;
  const [name, form] = MEASURES[key];
  const [, along, xForm, xs] = CLOCKS[against];
  const begun = runs.filter((run) => run.curves.seconds.length);
  const drawable = ["start", "day"].includes(against) ? begun.filter(timed) : begun;
  const exact = drawable.map((run) => ({ name: run.name, tone: run.tone, x: xs(run), y: [run.curves[key][0], ...run.curves[key]] }));
  const series = smooth ? exact.map((s) => ({ ...s, y: smoothed(s.y, smooth) })) : exact;
  if (key === "tokens_per_second") series.push(...drawable.filter(estimated).map((run) => estimate(run, xs(run))));
  if (!show("speed", begun.length)) return clear($("speed-chart"));
  const told = series.map((s) => `${s.name} ${form(s.y.at(-1))}`).join(", ");
  const hover = (values) => legend($("speed-legend"), withValues(series, values, form));
  const label = `${name} over time, last values: ${told}. Drag, or use + - and arrows, to look closer.`;
  const faint = smooth ? exact.map((s) => ({ ...s, faint: true })) : [];
  chart($("speed-chart"), { series: [...series, ...faint], form, xForm, label, hover, log, counted: against === "tokens", whole: key === "batch", titles: [CLOCKS[against][0], name], range: rangeOf(), zoom });
  hover(null);
  const estimates = series.some((s) => s.dashed) ? " Dashed: plain decoding, estimated from the run's own measured costs." : "";
  const left = begun.length - drawable.length;
  const missing = left ? ` ${left} without times of their own are left out.` : "";
  const soft = smooth ? " Thin: as measured." : "";
  $("speed-caption").textContent = `${name[0].toUpperCase()}${name.slice(1)}, against ${along}.${estimates}${soft}${missing}`;
  const head = against === "day" ? "time" : CLOCKS[against][0];
  fill($("speed-table"), table([head, ...series.map((s) => s.name)], sampled(series, form, against)));
}

function rangeOf() {
  const range = [Number(chosen("from", "x")), Number(chosen("to", "x"))];
  return range.every(Number.isFinite) && range[1] > range[0] ? range : null;
}

/** A running mean in which what lies `share` further back counts that much less; its first values are
 * those of what there is, not pulled to zero. */
export function smoothed(values, share) {
  let [sum, weight] = [0, 0];
  return values.map((value) => {
    sum = share * sum + (1 - share) * value;
    weight = share * weight + (1 - share);
    return sum / weight;
  });
}

/** Series with the values under the pointer. */
const withValues = (series, values, form) =>
  series.map((s, i) => ({ ...s, shown: values && values[i] != null ? form(values[i]) : null }));

const estimated = (run) => run.baseline.kind === "estimate" && run.curves.seconds.length;

function estimate(run, xs) {
  const value = run.baseline.tokens_per_second;
  return { name: `${run.name}, plain (estimate)`, tone: run.tone, dashed: true, x: [xs[0], xs.at(-1)], y: [value, value] };
}

function sampled(series, form, against) {
  if (!series.length) return [];
  const start = Math.min(...series.map((s) => s.x[0]));
  const end = Math.max(...series.map((s) => s.x.at(-1)));
  const last = ["at its end", ...series.map((s) => form(s.y.at(-1)))]; // a short run has no other row
  const rows = Array.from({ length: ROWS }, (_, i) => {
    const at = start + ((end - start) * (i + 1)) / ROWS;
    const values = series.map((s) => {
      const place = s.x.findIndex((x) => x >= at - 1e-9);
      return place < 0 ? "-" : form(s.y[place]);
    });
    return [against === "day" ? timeOfDay(at) : against === "tokens" ? number(at) : duration(at), ...values];
  });
  return [...rows, last];
}

export function drawSources(runs) {
  const drafted = runs.filter((run) => !run.plain && run.totals.new_tokens);
  if (!show("sources", drafted.length)) return;
  const parts = (run) => {
    const found = Object.entries(SOURCES).map(([key, [name, tone]]) => ({ name, tone, value: run.by_source[key] ?? 0 }));
    const own = run.totals.new_tokens - run.totals.accepted_tokens;
    return [...found, { name: "the model itself", tone: "var(--c0)", value: Math.max(0, own) }];
  };
  fill($("sources-bars"), ...drafted.map((run) =>
    stackBar(run.name, `${percent(ratio(run.totals.accepted_tokens, run.totals.new_tokens))} drafted`, parts(run))));
  legendAndTable("sources", "run", drafted, parts, 0);
}

export function drawTime(runs) {
  const timed = runs.filter((run) => run.totals.verify_seconds > 0);
  if (!show("time", timed.length)) return;
  const parts = (run) => {
    const found = Object.entries(PHASES).map(([key, [name, tone]]) => ({ name, tone, value: run.totals[key] }));
    const rest = run.totals.wall_seconds - found.reduce((sum, part) => sum + part.value, 0);
    return [...found, { name: "reading, writing, start-up", tone: "var(--c0)", value: Math.max(0, rest) }];
  };
  fill($("time-bars"), ...timed.map((run) => stackBar(run.name, duration(run.totals.wall_seconds), parts(run))));
  legendAndTable("time", "run, seconds", timed, parts, 2);
}

/** What bars are made of, as colours and as figures, without what none of them has. */
function legendAndTable(id, head, runs, parts, digits) {
  const all = runs.map(parts);
  const used = all[0].map((_, place) => all.some((of) => of[place].value > 0));
  const some = (of) => of.filter((_, place) => used[place]);
  legend($(`${id}-legend`), some(all[0]));
  fill($(`${id}-table`), table([head, ...some(all[0]).map((p) => p.name)],
    runs.map((run, i) => [run.name, ...some(all[i]).map((p) => number(p.value, digits))])));
}
