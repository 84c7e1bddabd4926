// Runs: which are shown, their tiles, advice on them, their settings.

import { $, el, fill, show, table, words } from "./dom.js";
import { duration, number, percent } from "./format.js";

const TONES = ["var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)", "var(--c7)"];
const hiddenRuns = new Set();
const WEIGHTS = { act: "act", consider: "consider", good: "good" };

/** Runs with their colours: plain ones grey, the others in turn. */
export function coloured(runs) {
  let next = 0;
  return runs.map((run) => ({
    ...run,
    plain: run.settings.draft === "none",
    tone: run.settings.draft === "none" ? "var(--c0)" : TONES[next++ % TONES.length],
  }));
}

export const visible = (runs) => runs.filter((run) => !hiddenRuns.has(run.path));

export function drawChips(runs, changed) {
  const boxes = runs.map((run) => {
    const toggle = (event) => {
      if (event.target.checked) hiddenRuns.delete(run.path);
      else hiddenRuns.add(run.path);
      changed();
    };
    const box = el("input", {
      type: "checkbox", "data-key": run.path, checked: !hiddenRuns.has(run.path), onchange: toggle,
    });
    return el("label", { class: "chip", tone: run.tone }, box, el("span", { class: "dot", "aria-hidden": "true" }), run.name);
  });
  fill($("chips"), el("legend", { class: "hidden" }, "Runs to show"), ...boxes);
}

export function drawTiles(runs) {
  fill($("tiles"), ...runs.map(tile));
}

function tile(run) {
  const { rates, totals } = run;
  const done = run.records ? run.records_done / run.records : 0;
  const state = { running: "running", quiet: "no news", finished: "finished" }[run.state];
  const big = run.speedup
    ? [number(run.speedup, 2), el("small", {}, run.baseline.kind === "estimate" ? " times plain, estimated" : " times plain")]
    : [number(rates.tokens_per_second), el("small", {}, " tokens/s")];
  const drafts = run.plain
    ? "nothing drafted: the baseline"
    : `${number(rates.tokens_per_call, 2)} tokens per call, ${percent(rates.acceptance_rate)} of drafts accepted`;
  const relaxed = run.settings.accept === "strict" || run.plain ? null : `${percent(rates.relaxed_share, 1)} of tokens relaxed`;
  return el("article", { class: "tile", tone: run.tone },
    el("p", { class: "name" }, run.name, " ", el("span", { class: `badge ${run.state}` }, state)),
    el("p", { class: "big" }, ...big),
    el("progress", { max: 1, value: done, "aria-label": `${run.name}: ${percent(done)} done` }),
    el("p", {}, `${number(run.records_done)} of ${number(run.records)} records, ${duration(totals.wall_seconds)}`),
    el("p", {}, run.speedup ? `${number(rates.tokens_per_second)} tokens/s; ${drafts}` : drafts),
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
      el("span", { class: "text" }, el("strong", {}, `${a.about}: `), a.text))));
}

export function drawSettings(runs) {
  if (!show("settings", runs.length)) return;
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
  const rows = [...names.map((name) => [name.replaceAll("_", " "), ...runs.map((run) => words(String(run.settings[name] ?? "-")))])];
  for (const fact of ["model", "device", "dtype"]) {
    rows.push([fact, ...runs.map((run) => words(run.facts[fact] || "-"))]);
  }
  rows.push(["folder", ...runs.map((run) => words(run.path))]);
  fill($("settings-table"), table(["setting", ...runs.map((run) => el("th", { scope: "col", class: "words" }, run.name))], rows));
}
