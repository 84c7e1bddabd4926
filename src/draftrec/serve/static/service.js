// A service's own figures: rates from the differences of its counters.

import { chart } from "./charts.js";
import { $, el, fill, show, table } from "./dom.js";
import { megabytes, number, percent, ratio } from "./format.js";

const MOST_SAMPLES = 300;
const samples = [];

/** Take in a sample of the service's metrics, and draw. */
export function drawService(figures) {
  if (samples.length && figures.counters.requests < samples.at(-1).counters.requests) samples.length = 0;
  samples.push(figures);
  if (samples.length > MOST_SAMPLES) samples.shift();
  show("service", true);
  fill($("service-tiles"), ...tiles(figures).map(([name, value]) =>
    el("article", { class: "tile" }, el("p", {}, name), el("p", { class: "big" }, value))));
  drawRates();
  const columns = ["route", "requests", "median, ms", "99 %, ms", "refused", "failed"];
  fill($("service-routes"), table(columns, Object.entries(figures.routes).map(([route, r]) => [
    route, number(r.requests), number(1000 * (r.p50 ?? 0), 1), number(1000 * (r.p99 ?? 0), 1), number(r.refused), number(r.failed),
  ])));
}

function tiles({ counters, gauges }) {
  const count = (name) => counters[name] ?? 0;
  return [
    ["waiting requests", number(gauges.queue_requests ?? 0)],
    ["texts at once", number(gauges.batch_sequences ?? 0)],
    ["users at once", number(gauges.beam_batch_users ?? 0)],
    ["tokens per call", number(ratio(count("new_tokens"), count("target_calls")), 2)],
    ["drafts accepted", percent(ratio(count("accepted_tokens"), count("drafted_tokens")))],
    ["calls per user", number(ratio(count("beam_target_calls"), count("beam_users")), 2)],
    ["accepted steps", number(ratio(count("beam_accepted_steps"), count("beam_users")), 2)],
    ["plain searches", percent(ratio(count("beam_plain_users"), count("beam_users")))],
    ["KV in use", percent(ratio(gauges.kv_tokens ?? 0, gauges.kv_capacity_tokens ?? 0))],
    ["pool, MB", megabytes(gauges.pool_bytes ?? 0)],
    ["pool hit rate", percent(gauges.pool_hit_ratio ?? 0)],
    ["errors", number(count("errors"))],
  ];
}

function drawRates() {
  if (samples.length < 2) return;
  const now = samples.at(-1).at;
  const rate = (name) => samples.slice(1).map((s, i) =>
    Math.max(0, ((s.counters[name] ?? 0) - (samples[i].counters[name] ?? 0)) / Math.max(s.at - samples[i].at, 0.1)));
  const x = samples.slice(1).map((s) => Math.round(s.at - now));
  const series = [
    { name: "answers per second", tone: "var(--c1)", x, y: rate("requests") },
    { name: "new tokens per second", tone: "var(--c2)", x, y: rate("new_tokens") },
  ];
  const label = series.map((s) => `${s.name}: ${number(s.y.at(-1), 1)}`).join(", ");
  chart($("service-chart"), { series, form: (v) => number(v), xForm: (v) => `${number(v)} s`, label });
}
