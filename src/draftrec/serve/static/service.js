// A service's own figures: rates from the differences of its counters.

import { chart } from "./charts.js";
import { $, el, fill, show, table } from "./dom.js";
import { clock, megabytes, number, percent, ratio } from "./format.js";

const MOST_SAMPLES = 300;
const samples = [];

/** Whether this page has heard of a service. */
export const hasService = () => samples.length > 0;

/** Take in a sample of the service's metrics, and draw. */
export function drawService(figures) {
  if (samples.length && figures.counters.requests < samples.at(-1).counters.requests) samples.length = 0;
  samples.push(figures);
  if (samples.length > MOST_SAMPLES) samples.shift();
  show("service", true);
  fill($("service-tiles"), ...tiles(figures).map(([name, value]) =>
    el("article", { class: "tile" }, el("p", {}, name), el("p", { class: "big" }, value))));
  drawRate("service-answers", "answers per second", "var(--c1)", answers);
  drawRate("service-tokens", "new tokens per second", "var(--c2)", (sample) => sample.counters.new_tokens ?? 0);
  const columns = ["route", "requests", "median, ms", "99 %, ms", "refused", "failed"];
  fill($("service-routes"), table(columns, Object.entries(figures.routes).filter(asked).map(([route, r]) => [
    route, number(r.requests), number(1000 * (r.p50 ?? 0), 1), number(1000 * (r.p99 ?? 0), 1), number(r.refused), number(r.failed),
  ])));
}

/** Whether a route is one that clients come for, and not this page's or a probe's. */
const asked = ([route]) => route.startsWith("/v1/");

const answers = (sample) => Object.entries(sample.routes).filter(asked).reduce((sum, [, r]) => sum + r.requests, 0);

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

function drawRate(id, name, tone, count) {
  if (samples.length < 2) return;
  const now = samples.at(-1).at;
  const later = samples.slice(1);
  const y = later.map((s, i) => Math.max(0, (count(s) - count(samples[i])) / Math.max(s.at - samples[i].at, 0.1)));
  const x = later.map((s) => Math.round(10 * (s.at - now)) / 10);
  const label = `${name}, now ${number(y.at(-1), 1)}`;
  chart($(id), { series: [{ name, tone, x, y }], form: (v) => number(v, v < 10 && v % 1 ? 1 : 0), xForm: clock, label });
}
