// Curves over the seconds of work, and where tokens and time went.

import { chart, clear } from "./charts.js";
import { $, fill, legend, show, stackBar, table } from "./dom.js";
import { clock, duration, number, percent, ratio } from "./format.js";

const MEASURES = {
  tokens_per_second: ["tokens per second", (v) => number(v)],
  tokens_per_call: ["tokens per call", (v) => number(v, v < 10 ? 1 : 0)],
  acceptance_rate: ["acceptance rate", (v) => percent(v)],
  relaxed_share: ["relaxed share", (v) => percent(v, 1)],
  batch: ["texts at once", (v) => number(v)],
};
const SOURCES = {
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

/** Offer the measures; `changed` is called when another is chosen. */
export function offerMeasures(changed) {
  const options = Object.entries(MEASURES).map(([key, [name]]) => new Option(name, key));
  $("measure").replaceChildren(...options);
  $("measure").addEventListener("change", changed);
}

export function drawSpeed(runs) {
  const key = $("measure").value;
  const [name, form] = MEASURES[key];
  const series = runs.filter((run) => run.curves.seconds.length).map((run) => ({
    name: run.name, tone: run.tone, ...fromZero(run.curves.seconds, run.curves[key]),
  }));
  if (key === "tokens_per_second") series.push(...runs.filter(estimated).map(estimate));
  if (!show("speed", series.length)) return clear($("speed-chart"));
  const told = series.map((s) => `${s.name} ${form(s.y.at(-1))}`).join(", ");
  const hover = (values) => legend($("speed-legend"), withValues(series, values, form));
  const label = `${name} over time, last values: ${told}`;
  chart($("speed-chart"), { series, form, xForm: clock, label, hover });
  hover(null);
  const estimates = series.some((s) => s.dashed) ? " Dashed: plain decoding, estimated from the run's own measured costs." : "";
  $("speed-caption").textContent = `${name[0].toUpperCase()}${name.slice(1)}, against the seconds of work of each run.${estimates}`;
  fill($("speed-table"), table(["seconds of work", ...series.map((s) => s.name)], sampled(series, form)));
}

/** Series with the values under the pointer. */
const withValues = (series, values, form) =>
  series.map((s, i) => ({ ...s, shown: values && values[i] != null ? form(values[i]) : null }));

const estimated = (run) => run.baseline.kind === "estimate" && run.curves.seconds.length;

function estimate(run) {
  const value = run.baseline.tokens_per_second;
  return { name: `${run.name}, plain (estimate)`, tone: run.tone, dashed: true, x: [0, run.curves.seconds.at(-1)], y: [value, value] };
}

/** A stretch has one rate from its start to its end, so the first one starts at zero. */
const fromZero = (x, y) => ({ x: [0, ...x], y: [y[0], ...y] });

function sampled(series, form) {
  const end = Math.max(...series.map((s) => s.x.at(-1)));
  return Array.from({ length: ROWS }, (_, i) => {
    const at = (end * (i + 1)) / ROWS;
    const values = series.map((s) => {
      const place = s.x.findIndex((x) => x >= at - 1e-9);
      return place < 0 ? "-" : form(s.y[place]);
    });
    return [duration(at), ...values];
  });
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
  legend($("sources-legend"), parts(drafted[0]));
  fill($("sources-table"), table(["run", ...parts(drafted[0]).map((p) => p.name)],
    drafted.map((run) => [run.name, ...parts(run).map((p) => number(p.value))])));
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
  legend($("time-legend"), parts(timed[0]));
  fill($("time-table"), table(["run, seconds", ...parts(timed[0]).map((p) => p.name)],
    timed.map((run) => [run.name, ...parts(run).map((p) => number(p.value, 2))])));
}
