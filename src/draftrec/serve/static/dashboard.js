// The page: data from the stream of events, drawn section by section.

import { $, fill, el, show } from "./dom.js";
import { coloured, drawAdvice, drawRuns, drawSettings, drawTiles, judged, listenToRuns, visible } from "./runs.js";
import { drawSources, drawSpeed, drawTime, offerMeasures } from "./speed.js";
import { drawGroups, drawRetrieval, listenToGroups } from "./pools.js";
import { drawCost, drawQuality } from "./worth.js";
import { drawService, hasService, listenToService, takeHistory } from "./service.js";
import { drawPair, listenToPair } from "./pair.js";
import { chosen, foldSections, goTo, onChoice } from "./view.js";

let data = null;
let runs = [];
let price = null;

let arrived = false;

function draw() {
  if (!data) return;
  runs = judged(coloured(data.runs), data.evaluations);
  const shown = visible(runs);
  show("runs", runs.length);
  $("lead").classList.toggle("one", runs.length === 1);
  drawRuns(runs, draw);
  drawTiles(shown);
  drawAdvice(data.advice, shown, runs);
  drawSpeed(shown);
  drawSources(shown);
  drawTime(shown);
  drawRetrieval(shown);
  drawGroups(shown);
  drawCost(shown, price);
  drawSettings(shown);
  drawPair(runs);
  drawContents();
  if (!arrived) goTo(chosen("at"));
  arrived = true;
}

/** Links to the sections that there are. */
function drawContents() {
  const sections = [...document.querySelectorAll("main section:not([hidden])")];
  const links = sections.map((s) => [s.id, s.querySelector("h2").textContent]);
  if ($("contents").dataset.of === JSON.stringify(links)) return;
  $("contents").dataset.of = JSON.stringify(links);
  fill($("contents"), ...links.map(([id, title]) => el("a", { href: `#at=${id}`, "data-key": `to-${id}` }, title.split(/[:,]/)[0])));
}

function receive(news) {
  data = news;
  $("waiting").hidden = true;
  if (price === null && data.price_per_hour !== null && $("price").value === "") {
    price = data.price_per_hour;
    $("price").value = String(price);
  }
  $("empty").hidden = hasService() || data.runs.length > 0 || data.evaluations.length > 0;
  fill($("notes"), ...data.notes.map((note) => el("p", { class: "note" }, note)));
  drawQuality(data.evaluations);
  draw();
  document.documentElement.dataset.version = data.version;
}

/** Take in what changed since the data of before: fields of runs, and other values as a whole. */
function receiveChanges({ order, runs: changed, ...rest }) {
  const known = new Map(data.runs.map((run) => [run.path, run]));
  receive({ ...data, ...rest, runs: order.map((path) => ({ ...known.get(path), ...changed[path] })) });
}

function connection(state, words) {
  $("connection").className = `connection ${state}`;
  if ($("connection").textContent !== words) $("connection").textContent = words;
}

function listen() {
  const events = new EventSource("dashboard/events");
  events.addEventListener("open", () => connection("live", "live"));
  events.addEventListener("error", () => connection("lost", "connection lost, trying again"));
  events.addEventListener("data", (event) => receive(JSON.parse(event.data)));
  events.addEventListener("changes", (event) => receiveChanges(JSON.parse(event.data)));
  events.addEventListener("history", (event) => takeHistory(JSON.parse(event.data)));
  events.addEventListener("service", (event) => {
    drawService(JSON.parse(event.data));
    drawContents();
    $("waiting").hidden = true;
    $("empty").hidden = true;
  });
}

/** What the user chose last time; storage may be forbidden. */
const memory = {
  read(key) {
    try {
      return localStorage.getItem(key);
    } catch {
      return null;
    }
  },
  write(key, value) {
    try {
      localStorage.setItem(key, value);
    } catch {
      // Then it is asked again next time.
    }
  },
};

function setPrice(text) {
  const value = Number.parseFloat(text);
  price = Number.isFinite(value) && value >= 0 ? value : null;
  if (data) drawCost(visible(runs), price);
}

function setTheme(wanted) {
  if (wanted === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = wanted;
  if (data) draw(); // canvases do not follow the style sheet by themselves
}

function start() {
  $("theme").value = memory.read("draftrec-theme") ?? "auto";
  $("theme").addEventListener("change", (event) => {
    memory.write("draftrec-theme", event.target.value);
    setTheme(event.target.value);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => data && draw());
  $("price").value = memory.read("draftrec-price") ?? "";
  setPrice($("price").value);
  $("price").addEventListener("input", (event) => {
    memory.write("draftrec-price", event.target.value);
    setPrice(event.target.value);
  });
  foldSections();
  offerMeasures();
  listenToRuns(() => runs);
  listenToPair();
  listenToService();
  onChoice(draw);
  listenToGroups(() => data && drawGroups(visible(runs)));
  listen();
}

start();
