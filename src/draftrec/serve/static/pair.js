// One run or two of them side by side: what they were asked for, what came of it, and their texts.

import { $, el, fill, legend, show, table } from "./dom.js";
import { duration, number, percent, short } from "./format.js";
import { draftsKept, guess, settingsTable } from "./runs.js";
import { SOURCES } from "./speed.js";
import { choose, chosen } from "./view.js";

const COUNT = 2;
const OWN = { model: ["the model itself", "var(--ink)"] };
let runs = [];
let asked = "";
let page = null;

export function listenToPair() {
  $("pair-a").addEventListener("change", () => choose({ a: $("pair-a").value, from_text: null }));
  $("pair-b").addEventListener("change", () => choose({ b: $("pair-b").value || null }));
  $("entity").addEventListener("change", () => choose({ entity: $("entity").value.trim() || null, from_text: null }));
  $("texts-back").addEventListener("click", () => turn(-COUNT));
  $("texts-on").addEventListener("click", () => turn(COUNT));
  $("pair").querySelector("details").addEventListener("toggle", () => drawPair(runs));
}

const first = () => Math.max(0, Number.parseInt(chosen("from_text", "0"), 10) || 0);
const turn = (by) => choose({ from_text: String(Math.max(0, first() + by)) });

export function drawPair(all) {
  runs = all;
  if (!show("pair", runs.length)) return;
  const usual = runs.find((run) => run.shown && !run.plain) ?? runs[0];
  const one = runs.find((run) => run.name === chosen("a")) ?? usual;
  const other = runs.find((run) => run.name === chosen("b") && run !== one) ?? null;
  offer($("pair-a"), runs.map((run) => run.name), one.name);
  offer($("pair-b"), ["", ...runs.filter((run) => run !== one).map((run) => run.name)], other?.name ?? "");
  $("pair-b").closest(".field").hidden = runs.length < 2;
  if (document.activeElement !== $("entity")) $("entity").value = chosen("entity");
  $("pair-table").hidden = !other;
  if (other) fill($("pair-table"), settingsTable([one, other], figures([one, other])));
  if ($("pair").querySelector("details").open) read(one, other);
}

function offer(select, names, value) {
  if (names.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
    select.replaceChildren(...names.map((name) => new Option(name || "none", name)));
  }
  select.value = value;
}

function figures(pair) {
  const times = (run) => (run.speedup ? (run.baseline.kind === "estimate" ? guess(number(run.speedup, 2)).textContent : number(run.speedup, 2)) : "-");
  const rows = [
    ["times plain", times],
    ["tokens per second", (run) => short(run.rates.tokens_per_second)],
    ["tokens per call", (run) => number(run.rates.tokens_per_call, 2)],
    ["drafts kept", (run) => percent(draftsKept(run))],
    ["relaxed tokens", (run) => (run.totals.relaxed_tokens ? percent(run.rates.relaxed_share, 1) : "-")],
    ["texts", (run) => number(run.totals.texts)],
    ["took", (run) => duration(run.totals.wall_seconds)],
  ];
  return rows.map(([name, form]) => [name, ...pair.map(form)]);
}

/** Ask for the texts, unless these are there already. Finished shards stay as they are. */
async function read(one, other) {
  const entity = chosen("entity");
  const wanted = new URLSearchParams({ run: one.path, start: String(first()), count: String(COUNT), entity, other: other?.path ?? "" });
  const mark = `${wanted} ${one.totals.texts} ${other?.totals.texts}`;
  if (mark === asked) return;
  const before = asked;
  asked = mark;
  try {
    const answer = await fetch(`dashboard/texts.json?${wanted}`);
    const found = await answer.json();
    if (mark !== asked) return; // another was asked for meanwhile
    if (!answer.ok) throw new Error(found.note ?? `the server said ${answer.status}`);
    page = found;
    drawTexts(one, other, entity);
  } catch (error) {
    if (mark !== asked) return;
    if (error instanceof TypeError) asked = before; // the network; asked again when there is news
    fill($("texts"));
    fill($("texts-legend"));
    $("texts-note").textContent = `No texts to show: ${error.message}`;
  }
}

function drawTexts(one, other, entity) {
  const { start, total, texts, others } = page;
  $("texts-back").disabled = Boolean(entity) || start === 0;
  $("texts-on").disabled = Boolean(entity) || start + texts.length >= total;
  const told = !texts.length
    ? entity ? `${one.name} has no text of ${entity} in its finished shards.` : "Texts appear here as soon as a shard is finished."
    : entity ? `Texts of ${entity}.` : `Texts ${number(start + 1)} to ${number(start + texts.length)} of ${number(total)}.`;
  const sampled = [...texts, ...others].some((text) => text?.pieces.some(([source]) => source));
  const noted = texts.length && !sampled ? " Where words came from is kept for the first texts of each shard." : "";
  $("texts-note").textContent = told + noted;
  const used = new Set([...texts, ...others].flatMap((text) => text?.pieces.map(([source]) => source) ?? []));
  legend($("texts-legend"), Object.entries({ ...SOURCES, ...OWN }).filter(([key]) => used.has(key)).map(([, [name, tone]]) => ({ name, tone })));
  fill($("texts"), ...texts.map((text, i) => card(text, others[i], one, other)));
}

function card(text, beside, one, other) {
  const same = beside && words(text) === words(beside);
  return el("article", { class: "card evaluation" },
    el("div", { class: "title" }, el("h3", { dir: "auto" }, text.entity_id), text.group ? el("span", { dir: "auto" }, text.group) : null,
      beside ? el("span", { class: `badge ${same ? "good" : "hint"}` }, same ? "the same text" : "texts differ") : null),
    text.prompt ? el("details", { class: "plain" }, el("summary", {}, "Prompt"), el("pre", { dir: "auto" }, text.prompt)) : null,
    el("div", { class: "versions" }, version(text, one), other ? version(beside, other) : null));
}

const words = (text) => text.pieces.map(([, piece]) => piece).join("");

function version(text, run) {
  const head = el("h4", {}, run.name);
  if (!text) return el("div", { class: "version", tone: run.tone }, head, el("p", { class: "hint" }, "It has no text of this entity yet."));
  const note = `${number(text.new_tokens)} tokens in ${number(text.target_calls)} calls, ${number(text.accepted_tokens)} drafted${text.relaxed_tokens ? `, ${number(text.relaxed_tokens)} relaxed` : ""}, ended by ${text.finish_reason}`;
  return el("div", { class: "version", tone: run.tone }, head, el("p", { class: "hint" }, note),
    el("p", { class: "written", dir: "auto" }, ...text.pieces.map(piece), text.cut ? el("span", { class: "hint" }, " … (cut off here)") : null));
}

function piece([source, text]) {
  const [name, tone] = Object.hasOwn(SOURCES, source) ? SOURCES[source] : [];
  return name ? el("mark", { tone, title: name }, text) : text;
}
