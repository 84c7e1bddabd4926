// Drafts and retrieval, and what each group's pool gives for its memory.

import { chart, clear } from "./charts.js";
import { $, el, fill, legend, meter, show, table } from "./dom.js";
import { megabytes, number, percent, places, ratio } from "./format.js";
import { draftsKept } from "./runs.js";

const MOST_ROWS = 15;
let sorting = { key: "accepted_tokens", rising: false };
let everything = false;

const COLUMNS = [
  ["name", "group", (g) => g.name || "(none)"],
  ["texts", "texts", (g) => number(g.texts)],
  ["per_call", "tokens per call", (g) => number(g.per_call, 2)],
  ["rate", "accepted", (g) => percent(g.rate)],
  ["accepted_tokens", "accepted tokens", (g) => number(g.accepted_tokens)],
  ["from_pool", "of them from its pool", (g) => number(g.from_pool)],
  ["pool_bytes", "pool, MB", (g) => megabytes(g.pool_bytes)],
  ["per_mb", "accepted per MB", (g) => number(g.per_mb)],
];

/** Call `changed` when another run or a part of a name is chosen. */
export function listenToGroups(changed) {
  $("group-run").addEventListener("change", changed);
  $("group-filter").addEventListener("input", changed);
}

export function drawRetrieval(runs) {
  const drafted = runs.filter((run) => !run.plain && run.totals.target_calls);
  if (!show("retrieval", drafted.length)) return clear($("lengths-chart"));
  const columns = ["run", "calls with a draft", "drafted per draft", "kept per draft", "acceptance", "relaxed tokens", "pool texts", "pool MB", "pool hit rate"];
  fill($("retrieval-table"), table(columns, drafted.map(retrievalRow)));
  drawLengths(drafted);
}

function retrievalRow(run) {
  const { totals, rates, pool } = run;
  return [
    run.name,
    percent(ratio(totals.draft_calls, totals.target_calls)),
    number(ratio(totals.drafted_tokens, totals.draft_calls), 1),
    number(totals.draft_calls ? rates.mean_accepted_tokens : null, 2),
    percent(draftsKept(run)),
    percent(rates.relaxed_share, 1),
    pool ? number(pool.texts) : "-",
    pool ? megabytes(pool.nbytes) : "-",
    pool && pool.drafts ? percent(pool.hits / pool.drafts) : "-",
  ];
}

function drawLengths(runs) {
  const pools = new Map();
  for (const { pool, tone } of runs) {
    if (pool?.accepted && !pools.has(pool.path)) pools.set(pool.path, { pool, tone });
  }
  const [first] = pools.values();
  $("lengths").hidden = !first;
  if (!first) return clear($("lengths-chart"));
  const { pool, tone } = first;
  const name = pool.path.split("/").slice(-2).join("/");
  const x = pool.by_length.map((_, length) => length);
  const shares = pool.by_length.map((n) => n / pool.accepted);
  const label = `Accepted tokens by length of the match, pool ${name}`;
  chart($("lengths-chart"), { series: [{ name, tone, x, y: shares }], form: (v, step) => percent(v, step ? places(100 * step) : 0), xForm: (v) => number(v), label, bars: true, titles: ["tokens known before the draft", "share accepted"] });
  legend($("lengths-legend"), [{ name: `pool ${name}`, tone }]);
  fill($("lengths-table"), table(["tokens known", "accepted tokens", "share"], x.map((n) => [String(n), number(pool.by_length[n]), percent(shares[n], 1)])));
}

export function drawGroups(runs) {
  const grouped = runs.filter((run) => !run.plain && run.groups.some((g) => g.name));
  if (!show("groups", grouped.length)) return;
  const run = offerRuns(grouped);
  const wanted = $("group-filter").value.trim().toLowerCase();
  const groups = run.groups.map(figures).filter((g) => (g.name || "(none)").toLowerCase().includes(wanted));
  groups.sort(compare);
  const shown = everything ? groups : groups.slice(0, MOST_ROWS);
  const most = Math.max(...run.groups.map((g) => g.per_mb ?? 0), run.everyone?.per_mb ?? 0, 1e-9);
  const rows = shown.map((g) => row(g, most));
  if (run.everyone && !wanted) rows.unshift(row({ ...figures(run.everyone), name: "the pool of all" }, most));
  const again = () => drawGroups(runs);
  fill($("groups-table"), table(COLUMNS.map((column) => sorter(column, again)), rows));
  const sized = run.groups.some((g) => g.per_mb !== null);
  noteGroups(groups.length - shown.length, sized, again);
}

function offerRuns(runs) {
  const select = $("group-run");
  const before = select.value;
  const paths = runs.map((run) => run.path);
  if (paths.join("\n") !== [...select.options].map((o) => o.value).join("\n")) {
    select.replaceChildren(...runs.map((run) => new Option(run.name, run.path)));
    if (paths.includes(before)) select.value = before;
  }
  return runs.find((run) => run.path === select.value) ?? runs[0];
}

const figures = (group) => ({
  ...group,
  per_call: ratio(group.new_tokens, group.target_calls),
  rate: ratio(group.accepted_tokens, group.drafted_tokens),
});

function row(group, most) {
  return COLUMNS.map(([key, , shown]) => {
    if (key !== "per_mb" || group.per_mb === null) return shown(group);
    return el("td", {}, shown(group), meter(group.per_mb / most));
  });
}

function compare(one, other) {
  const [a, b] = [one[sorting.key], other[sorting.key]];
  const order = typeof a === "string" ? a.localeCompare(b) : (a ?? -1) - (b ?? -1);
  return (sorting.rising ? order : -order) || one.name.localeCompare(other.name);
}

function sorter([key, name], again) {
  const sorted = sorting.key === key;
  const sort = () => {
    sorting = { key, rising: sorted ? !sorting.rising : key === "name" };
    again();
  };
  const mark = sorted ? (sorting.rising ? " ↑" : " ↓") : "";
  const state = sorted ? (sorting.rising ? "ascending" : "descending") : undefined;
  return el("th", { scope: "col", "aria-sort": state }, el("button", { type: "button", "data-key": key, onclick: sort }, name + mark));
}

function noteGroups(left, sized, again) {
  const note = sized
    ? "Accepted tokens of this run per megabyte of the group's index: a pool far below the others could be pruned."
    : "How large pools are is known of runs that began with one or kept theirs (--pool, --save-pool).";
  if (left <= 0) return fill($("groups-note"), note);
  const all = () => {
    everything = true;
    again();
  };
  fill($("groups-note"), note, " ", el("button", { type: "button", "data-key": "all", onclick: all }, `Show ${number(left)} more groups`));
}
