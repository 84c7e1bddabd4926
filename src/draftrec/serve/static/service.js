// A service's own figures: what its server kept of the last hour, and its counters now.

import { chart } from "./charts.js";
import { $, el, fill, legend, show, table } from "./dom.js";
import { clock, duration, megabytes, number, percent, places, ratio, short, timeOfDay } from "./format.js";
import { choose, chosen, onChoice } from "./view.js";

const MOST_POINTS = 720;
const TONES = ["var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)"];
const STATUSES = [
  ["2xx", "answered", "var(--c3)"], ["4xx", "refused as wrong", "var(--c4)"],
  ["429", "refused as too many", "var(--c2)"], ["499", "hung up", "var(--c0)"], ["5xx", "failed", "var(--c5)"],
];
const SPANS = ["300", "900", "3600"];
let points = [];
let heard = false;
let about = null;

/** Whether this page has heard of a service. */
export const hasService = () => heard;

export function listenToService() {
  $("span").addEventListener("change", () => choose({ span: $("span").value }));
  onChoice(drawCharts);
}

/** Take in points that the server kept: all of them at first, later those that are new. */
export function takeHistory(news) {
  if (news.about) {
    about = { ...news.about, heard: Date.now() };
    points = [];
    $("service-settings").textContent = JSON.stringify(about.settings, null, 2);
    $("service-settings").parentElement.hidden = !Object.keys(about.settings ?? {}).length;
  }
  points = [...points, ...news.points].slice(-MOST_POINTS);
  show("service", true);
  tell();
  drawCharts();
}

/** Take in the counters as they stand, and draw. */
export function drawService(figures) {
  heard = true;
  show("service", true);
  fill($("service-tiles"), ...tiles(figures).map(([name, value]) =>
    el("article", { class: "tile" }, el("p", {}, name), el("p", { class: "big" }, value))));
  const columns = ["route", "requests", "median, ms", "99 %, ms", "refused as wrong", "refused as too many", "hung up", "failed"];
  const rows = Object.entries(figures.routes).filter(asked).map(([route, r]) => [
    route, number(r.requests), number(1000 * (r.p50 ?? 0), 1), number(1000 * (r.p99 ?? 0), 1), number(r.wrong), number(r.refused), number(r.gone), number(r.failed),
  ]);
  $("service-routes").hidden = !rows.length;
  fill($("service-routes"), table(columns, rows));
  tell();
}

function tell() {
  if (!about?.version) return;
  const models = Object.entries(about.models ?? {}).map(([kind, name]) => `${kind}: ${name}`).join(", ");
  $("service-about").textContent = `draftrec ${about.version}${models ? `, ${models}` : ""}, up for ${duration(about.uptime + (Date.now() - about.heard) / 1000)}.`;
}

/** Whether a route is one that clients come for, and not this page's or a probe's. */
const asked = ([route, { requests }]) => route.startsWith("/v1/") && requests > 0;

/** What there is to say, of the kinds of work that this service does. */
function tiles({ counters, gauges }) {
  const count = (name) => counters[name] ?? 0;
  const found = [["waiting requests", number(gauges.queue_requests ?? 0)]];
  if (count("new_tokens")) {
    found.push(
      ["texts at once", number(gauges.batch_sequences ?? 0)],
      ["tokens per call", number(ratio(count("new_tokens"), count("target_calls")), 2)],
      ["drafts accepted", percent(ratio(count("accepted_tokens"), count("drafted_tokens")))],
      ["KV in use", percent(ratio(gauges.kv_tokens ?? 0, gauges.kv_capacity_tokens ?? 0))],
    );
  }
  if (gauges.pool_texts) found.push(["pool, MB", megabytes(gauges.pool_bytes ?? 0)], ["pool hit rate", percent(gauges.pool_hit_ratio ?? 0)]);
  if (count("beam_users")) {
    found.push(
      ["users at once", number(gauges.beam_batch_users ?? 0)],
      ["calls per user", number(ratio(count("beam_target_calls"), count("beam_users")), 2)],
      ["accepted steps", number(ratio(count("beam_accepted_steps"), count("beam_users")), 2)],
      ["plain searches", percent(ratio(count("beam_plain_users"), count("beam_users")))],
    );
  }
  return [...found, ["errors", number(count("errors"))]];
}

function drawCharts() {
  const span = SPANS.includes(chosen("span")) ? chosen("span") : SPANS[0];
  $("span").value = span;
  if (!points.length) return;
  const now = points.at(-1).at;
  const shown = points.filter((point) => point.at > now - Number(span));
  const whole = { shown, range: shown.length > 1 ? [shown[0].at, now] : null };
  const routes = [...new Set(shown.flatMap((p) => Object.keys(p.times.request_seconds ?? {})))].sort();
  draw("service-latency", "time to answer", whole, routes.flatMap((route, i) => [0, 1].map((place) => ({
    name: `${route}, ${place ? "99 %" : "median"}`, tone: TONES[i % TONES.length], dashed: place === 1, gaps: true,
    value: (p) => p.times.request_seconds?.[route]?.[place] ?? null,
  }))), (v, step) => (step && v >= 1 ? clock(v) : step && step < 0.001 ? `${number(1000 * v, places(1000 * step))} ms` : duration(v)));
  draw("service-queue", "waiting and under way", whole, [
    { name: "waiting requests", tone: "var(--c2)", value: (p) => (p.gauges.queue_requests ?? 0) },
    { name: "texts at once", tone: "var(--c1)", value: (p) => p.gauges.batch_sequences ?? 0 },
    { name: "users at once", tone: "var(--c3)", value: (p) => p.gauges.beam_batch_users ?? 0 },
  ].filter((s) => s.name === "waiting requests" || shown.some((p) => s.value(p))), short, true);
  // Users are more than answers where one request brings many.
  const users = { name: "users recommended to", tone: "var(--c1)", value: (p) => p.totals.beam_users ?? 0 };
  draw("service-answers", "answers per second", whole, [...STATUSES.map(([status, name, tone]) => ({
    name, tone, value: (p) => p.answers[status] ?? 0,
  })), users].filter((s) => s.name === "answered" || shown.some((p) => s.value(p))), short);
  draw("service-tokens", "new tokens per second", whole, [
    { name: "new tokens per second", tone: "var(--c2)", value: (p) => p.totals.new_tokens ?? 0 },
  ], short);
}

function draw(id, name, { shown, range }, series, form, whole = false) {
  const x = shown.map((p) => p.at);
  const curves = series.map((s) => ({ ...s, x, y: shown.map(s.value) }));
  const last = (s) => { const known = s.y.findLast((v) => v !== null); return known === undefined ? "-" : form(known); };
  const label = `${name}, last: ${curves.map((s) => `${s.name} ${last(s)}`).join(", ")}`;
  const hover = (values) => legend($(`${id}-legend`), curves.map((s, i) => ({ ...s, shown: values ? (values[i] == null ? null : form(values[i])) : last(s) })));
  // Minutes tell ticks apart where there is no more than one to a minute.
  const seconds = range && range[1] - range[0] < 600;
  chart($(id), { series: curves, form, xForm: (at) => timeOfDay(at).slice(0, seconds ? 8 : 5), label, hover, range, whole });
  hover(null);
  if (!curves.length) fill($(`${id}-legend`), el("li", {}, "nothing has been asked in this time"));
}
