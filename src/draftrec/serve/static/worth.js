// Quality of evaluations, and cost at the user's price.

import { $, el, fill, show, table, words } from "./dom.js";
import { duration, hours, money, number } from "./format.js";

const VERDICTS = { passed: "gate passed", closed: "gate closed" };

export function drawQuality(evaluations) {
  if (!show("quality", evaluations.length)) return;
  fill($("quality-cards"), ...evaluations.map(card));
}

function card({ name, kind, verdict, findings, tables }) {
  return el("article", { class: "card evaluation" },
    el("div", { class: "title" }, el("h3", {}, name), el("span", {}, kind),
      verdict ? el("span", { class: `badge ${verdict}` }, VERDICTS[verdict]) : null),
    el("ul", {}, ...findings.map((finding) => el("li", {}, finding))),
    ...tables.map((t) => wordTable(t, tables.length > 1 || t.rows.length > 8)));
}

function wordTable({ caption, columns, rows }, folded) {
  const body = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    table(columns, rows.map((row) => row.map(cell))));
  return folded ? el("details", {}, el("summary", {}, `${caption}: ${rows.length} rows`), body) : body;
}

const VERDICT_WORDS = new Set(["kept", "broken", "undecided"]);

function cell(text, place) {
  if (place === 0) return text;
  if (VERDICT_WORDS.has(text)) return el("td", {}, el("span", { class: `badge ${text}` }, text));
  return /^[+-]?[\d.,]+( %| pp)?$|^-$/.test(text) ? text : words(text);
}

/** Hours and money of a run, and what plain decoding would have taken for the same texts. */
export function costOf(run, price) {
  const ours = run.totals.wall_seconds / 3600;
  const plain = run.speedup ? ours * run.speedup : null;
  const saved = plain === null ? null : plain - ours;
  return { ours, plain, saved, texts: run.totals.entities - run.totals.kept, price };
}

export function drawCost(runs, price) {
  const timed = runs.filter((run) => run.totals.wall_seconds > 0);
  if (!show("cost", timed.length)) return;
  const columns = ["run", "device hours", "cost", "plain would take", "hours saved", "money saved", "saved per million texts"];
  $("cost-hint").hidden = price !== null;
  fill($("cost-table"), table(columns, timed.map((run) => costRow(run, costOf(run, price)))));
}

function costRow(run, { ours, plain, saved, texts, price }) {
  const paid = (value) => (price === null ? "-" : money(value * price));
  const scale = texts ? 1e6 / texts : 0;
  const many = saved === null || !texts
    ? "-"
    : price === null ? `${number(saved * scale, 1)} h` : money(saved * scale * price);
  return [
    run.name,
    hours(ours),
    paid(ours),
    plain === null ? "-" : duration(plain * 3600),
    saved === null ? "-" : hours(saved),
    saved === null ? "-" : paid(saved),
    many,
  ];
}
