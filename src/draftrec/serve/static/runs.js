// Runs: a table to sort and search, which of them are shown, their tiles, advice, settings.

import { $, el, fill, show, table } from "./dom.js";
import { duration, number, percent, ratio, short } from "./format.js";
import { choose, chosen, chosenList } from "./view.js";

const TONES = ["var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)", "var(--c7)"];
const WEIGHTS = { act: "act", consider: "consider", good: "good" };
const STATES = { running: "running", quiet: "no news", finished: "finished" };
/** Runs that are shown where nobody has chosen: more lines than this tell nothing. */
const USUALLY = 7;
const MOST_TILES = 12;
const MOST_ROWS = 50;
let everyRow = false;

/** Runs with their colours, plain ones grey and the others in turn, and what the table sorts by. */
export function coloured(runs) {
  const shown = usual(runs);
  let next = 0;
  return runs.map((run) => {
    const plain = run.settings.draft === "none";
    const counted = chosenList("show") ? (chosenList("show").includes(run.name)) : shown.has(run.name);
    const tone = plain ? "var(--c0)" : counted ? TONES[next++ % TONES.length] : "var(--c0)";
    return { ...run, plain, tone, shown: counted };
  });
}

/** Those that wrote last; finished ones stay where there is room. */
function usual(runs) {
  const order = [...runs].sort((a, b) => a.quiet_seconds - b.quiet_seconds || a.name.localeCompare(b.name));
  return new Set(order.slice(0, USUALLY).map((run) => run.name));
}

export const visible = (runs) => runs.filter((run) => run.shown);

/** Seconds that a running run will still take at its speed so far, null where that is not known. */
export function remaining(run) {
  const { wall_seconds: seconds } = run.totals;
  if (run.state !== "running" || !run.records_done || !seconds) return null;
  return ((run.records - run.records_done) * seconds) / run.records_done;
}

/** A figure that was not measured looks so. */
export const guess = (shown) => el("span", { class: "guess", title: "estimated, not measured" }, `≈ ${shown}`);

const COLUMNS = {
  __proto__: null, // names come from the address and from what people type
  name: ["run", (r) => r.name],
  state: ["state", (r) => STATES[r.state], (r) => el("span", { class: `badge ${r.state}` }, STATES[r.state])],
  done: ["done", (r) => ratio(r.records_done, r.records), (r) => percent(ratio(r.records_done, r.records))],
  left: ["time left", remaining, (r) => (remaining(r) === null ? "-" : guess(duration(remaining(r))))],
  times: ["times plain", (r) => r.speedup, timesOf],
  speed: ["tokens/s", (r) => r.rates.tokens_per_second, (r) => short(r.rates.tokens_per_second)],
  percall: ["tokens per call", perCall, (r) => number(perCall(r), 2)],
  kept: ["drafts kept", draftsKept, (r) => percent(draftsKept(r))],
  relaxed: ["relaxed", (r) => (r.totals.relaxed_tokens ? r.rates.relaxed_share : null), (r) => (r.totals.relaxed_tokens ? percent(r.rates.relaxed_share, 1) : "-")],
  rejected: ["rejected", (r) => r.totals.rejected || null, (r) => number(r.totals.rejected || null)],
  cut: ["cut off", ...ending("cut_texts")],
  empty: ["empty", ...ending("empty_texts")],
  looping: ["looping", ...ending("looping_texts")],
  gate: ["gate", (r) => r.gate ?? null, (r) => (r.gate ? el("span", { class: `badge ${r.gate}` }, r.gate) : "-")],
  texts: ["texts", (r) => r.totals.texts, (r) => number(r.totals.texts)],
  took: ["took", (r) => r.totals.wall_seconds, (r) => duration(r.totals.wall_seconds)],
};

/** Tokens per call of a run, null where there was no call. */
function perCall({ totals, rates }) {
  return totals.target_calls ? rates.tokens_per_call : null;
}

/** Share of the drafted tokens that were accepted, null where nothing was drafted: that is not
 * the same as drafts of which nothing was kept. */
export function draftsKept({ totals, rates }) {
  return totals.drafted_tokens ? rates.acceptance_rate : null;
}

function ending(name) {
  const share = (run) => (run.totals[name] ? ratio(run.totals[name], run.totals.texts) : null);
  return [share, (run) => (share(run) === null ? "-" : percent(share(run), 1))];
}

function timesOf(run) {
  if (!run.speedup) return run.plain ? "baseline" : "-";
  return run.baseline.kind === "estimate" ? guess(number(run.speedup, 2)) : number(run.speedup, 2);
}

/** What evaluations said of a run, by its name. */
export function judged(runs, evaluations) {
  const gates = new Map();
  for (const { kind, tables } of evaluations) {
    if (kind !== "comparison" || !tables.length) continue;
    for (const row of tables[0].rows) {
      const worse = row.at(-1) === "broken" ? "closed" : row.at(-1) === "kept" ? "passed" : null;
      if (worse && gates.get(row[0]) !== "closed") gates.set(row[0], worse);
    }
  }
  return runs.map((run) => ({ ...run, gate: gates.get(run.name.split("/").at(-1)) ?? gates.get(run.name) }));
}

const facts = (run) => ({ ...run.settings, model: run.facts.model, device: run.facts.device, dtype: run.facts.dtype });

/** Settings in which runs differ, and those that they have in common, as words. */
function settingColumns(runs) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(facts(run))))];
  const told = (run, name) => String(facts(run)[name] ?? "-");
  const differing = names.filter((name) => new Set(runs.map((run) => told(run, name))).size > 1);
  const same = names.filter((name) => !differing.includes(name) && told(runs[0], name) !== "-" && told(runs[0], name) !== "");
  return [differing, same.map((name) => `${name.replaceAll("_", " ")} ${told(runs[0], name)}`)];
}

/** A number as the table shows it: with commas between thousands, a share with its sign. */
function figure(text) {
  const plain = text.replaceAll(",", "");
  return plain.endsWith("%") ? Number(plain.slice(0, -1)) / 100 : Number(plain);
}

/** Whether a run has all that was asked for: words anywhere, or name=value, name>number, name<number. */
export function matches(run, asked) {
  const all = facts(run);
  const value = (name) => (COLUMNS[name] ? COLUMNS[name][1](run) : all[name]);
  const text = `${run.name} ${STATES[run.state]} ${Object.values(all).join(" ")}`.toLowerCase();
  return asked.toLowerCase().split(/\s+/).filter(Boolean).every((term) => {
    const [, name, sign, wanted] = /^(\w+)([=<>])(.+)$/.exec(term) ?? [];
    if (!name || (!COLUMNS[name] && !Object.hasOwn(all, name))) return text.includes(term);
    const found = value(name);
    if (sign === "=") return String(found).toLowerCase() === wanted;
    if (found === null || found === undefined || found === "") return false;
    return sign === "<" ? Number(found) < figure(wanted) : Number(found) > figure(wanted);
  });
}

export function listenToRuns(changed) {
  $("find").value = chosen("find");
  $("find").addEventListener("input", () => choose({ find: $("find").value || null }));
  $("show-none").addEventListener("click", () => choose({ show: [] }));
  $("show-all").addEventListener("click", () => choose({ show: changed().filter((r) => matches(r, chosen("find"))).map((r) => r.name) }));
}

export function drawRuns(runs, again) {
  const many = runs.length > 1;
  for (const id of ["run-tools", "run-table", "run-note"]) $(id).hidden = !many;
  if (!many) return;
  if (document.activeElement !== $("find")) $("find").value = chosen("find");
  const found = runs.filter((run) => matches(run, chosen("find")));
  const [differing, same] = settingColumns(runs);
  const [key, rising] = [chosen("sort", "name"), chosen("rising", "1") === "1"];
  found.sort(comparison(key, rising));
  const names = [...Object.keys(COLUMNS), ...differing.filter((name) => !COLUMNS[name])];
  const used = names.filter((name) => name === "name" || found.some((run) => ![null, undefined, ""].includes(valueOf(run, name))));
  const rows = (everyRow ? found : found.slice(0, MOST_ROWS)).map((run) => rowOf(run, used, runs));
  const heads = [el("th", { scope: "col" }, "shown"), ...used.map((name) => heading(name, key, rising))];
  fill($("run-table"), table(heads, rows));
  const left = found.length - rows.length;
  const more = left > 0 ? el("button", { type: "button", "data-key": "more", onclick: () => { everyRow = true; again(); } }, `List ${number(left)} more`) : null;
  fill($("run-note"), `${number(found.length)} of ${number(runs.length)} runs, ${number(visible(runs).length)} shown below. ${same.length ? `All have ${same.join(", ")}. ` : ""}`, ...(more ? [more] : []));
}

const valueOf = (run, name) => (COLUMNS[name] ? COLUMNS[name][1](run) : facts(run)[name]);

function comparison(key, rising) {
  return (one, other) => {
    const [a, b] = [valueOf(one, key), valueOf(other, key)];
    const missing = (v) => v === null || v === undefined;
    if (missing(a) || missing(b)) return missing(a) - missing(b) || one.name.localeCompare(other.name);
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return (rising ? order : -order) || one.name.localeCompare(other.name);
  };
}

function heading(name, key, rising) {
  const sorted = name === key;
  const sort = () => choose({ sort: name, rising: (sorted ? !rising : ["name", "state"].includes(name) || !COLUMNS[name]) ? "1" : "0" });
  const mark = sorted ? (rising ? " ↑" : " ↓") : "";
  const title = COLUMNS[name]?.[0] ?? name.replaceAll("_", " ");
  return el("th", { scope: "col", class: name === "name" ? "run" : undefined, "aria-sort": sorted ? (rising ? "ascending" : "descending") : undefined },
    el("button", { type: "button", "data-key": `sort-${name}`, onclick: sort }, title + mark));
}

function rowOf(run, used, runs) {
  const toggle = (event) => {
    const now = new Set(visible(runs).map((r) => r.name));
    if (event.target.checked) now.add(run.name);
    else now.delete(run.name);
    choose({ show: runs.map((r) => r.name).filter((name) => now.has(name)) });
  };
  const box = el("label", { class: "tick" }, el("input", { type: "checkbox", "data-key": `show-${run.path}`, "aria-label": run.name, checked: run.shown, onchange: toggle }),
    el("span", { class: "dot", tone: run.shown ? run.tone : "var(--line)", "aria-hidden": "true" }));
  const cells = used.map((name) => {
    if (name === "name") return el("th", { scope: "row", class: "run" }, run.name);
    return COLUMNS[name] ? (COLUMNS[name][2] ?? COLUMNS[name][1])(run) : String(facts(run)[name] ?? "-");
  });
  return [el("td", {}, box), ...cells];
}

export function drawTiles(runs) {
  fill($("tiles"), ...runs.slice(0, MOST_TILES).map(tile));
}

function drafted(run) {
  if (run.plain) return "nothing drafted: the baseline";
  if (!run.totals.target_calls) return "nothing written";
  const kept = draftsKept(run);
  return `${number(perCall(run), 2)} tokens per call, ${kept === null ? "nothing drafted" : `${percent(kept)} of drafts accepted`}`;
}

function tile(run) {
  const { rates, totals } = run;
  const done = run.records ? run.records_done / run.records : 0;
  const estimated = run.speedup && run.baseline.kind === "estimate";
  const big = run.speedup
    ? [estimated ? guess(number(run.speedup, 2)) : number(run.speedup, 2), el("small", {}, estimated ? " times plain, estimated" : " times plain")]
    : [short(rates.tokens_per_second), el("small", {}, " tokens/s")];
  const drafts = drafted(run);
  const relaxed = run.settings.accept === "strict" || run.plain ? null : `${percent(rates.relaxed_share, 1)} of tokens relaxed`;
  const left = remaining(run);
  return el("article", { class: estimated ? "tile estimated" : "tile", tone: run.tone },
    el("p", { class: "name" }, run.name, " ", el("span", { class: `badge ${run.state}` }, STATES[run.state])),
    el("p", { class: "big" }, ...big),
    el("progress", { max: 1, value: done, "aria-label": `${run.name}: ${percent(done)} done` }),
    el("p", {}, `${number(run.records_done)} of ${number(run.records)} records${totals.rejected ? `, ${number(totals.rejected)} of them rejected` : ""}, ${duration(totals.wall_seconds)}`,
      ...(left === null ? [] : [", ", guess(duration(left)), " left"])),
    el("p", {}, run.speedup ? `${short(rates.tokens_per_second)} tokens/s; ${drafts}` : drafts),
    relaxed ? el("p", {}, relaxed) : null,
    run.plain ? null : el("p", {}, `Baseline: ${run.baseline.words}.`));
}

export function drawAdvice(advice, runs, all) {
  const names = new Set(runs.map((run) => run.name));
  const known = new Set(all.map((run) => run.name));
  const shown = advice.filter((a) => names.has(a.about) || !known.has(a.about));
  if (!show("advice", shown.length)) return;
  fill($("advice-list"), ...shown.map((a) =>
    el("li", {}, el("span", { class: `badge ${a.weight}` }, WEIGHTS[a.weight]),
      el("span", { class: "text" }, el("strong", {}, `${a.about}: `), ...withOptions(a.text)))));
}

/** Words in which an option is not torn from its dashes and its value. */
const withOptions = (text) => text.split(/(--[a-z][a-z-]*(?: (?:auto|none|strict|relaxed|N|[0-9.]+)\b)?)/)
  .map((part, place) => (place % 2 ? el("code", { class: "option" }, part) : part));

export function drawSettings(runs) {
  if (!show("settings", runs.length)) return;
  fill($("settings-table"), settingsTable(runs));
}

/** What runs were asked for, in what they differ first and marked. */
export function settingsTable(runs, more = []) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(facts(run))))];
  const rows = [...names.map((name) => [name.replaceAll("_", " "), ...runs.map((run) => String(facts(run)[name] || (facts(run)[name] ?? "-")))]), ...more];
  rows.push(["folder", ...runs.map((run) => run.path)]);
  const differs = ([, ...texts]) => new Set(texts).size > 1;
  const told = rows.filter((row) => row.slice(1).some((text) => text !== "-"));
  const ordered = [...told.filter(differs), ...told.filter((row) => !differs(row))];
  const cells = ordered.map(([name, ...texts]) => {
    const differ = differs([name, ...texts]);
    return [name, ...texts.map((text) => el("td", { class: differ && runs.length > 1 ? "words differs" : "words" }, text))];
  });
  return table(["setting", ...runs.map((run) => el("th", { scope: "col", class: "words" }, run.name))], cells);
}
