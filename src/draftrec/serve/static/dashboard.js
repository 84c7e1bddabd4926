// The page: data from the stream of events, drawn section by section.

import { $, fill, el, show } from "./dom.js";
import { coloured, drawAdvice, drawChips, drawSettings, drawTiles, visible } from "./runs.js";
import { drawSources, drawSpeed, drawTime, offerMeasures } from "./speed.js";
import { drawGroups, drawRetrieval, listenToGroups } from "./pools.js";
import { drawCost, drawQuality } from "./worth.js";
import { drawService, hasService } from "./service.js";

let data = null;
let runs = [];
let price = null;

function draw() {
  const shown = visible(runs);
  drawTiles(shown);
  drawAdvice(data.advice, shown, runs);
  drawSpeed(shown);
  drawSources(shown);
  drawTime(shown);
  drawRetrieval(shown);
  drawGroups(shown);
  drawCost(shown, price);
  drawSettings(shown);
}

function receive(news) {
  data = news;
  runs = coloured(data.runs);
  if (price === null && data.price_per_hour !== null && $("price").value === "") {
    price = data.price_per_hour;
    $("price").value = String(price);
  }
  $("empty").hidden = hasService() || runs.length > 0 || data.evaluations.length > 0;
  fill($("notes"), ...data.notes.map((note) => el("p", { class: "note" }, note)));
  show("runs", runs.length);
  drawChips(runs, draw);
  drawQuality(data.evaluations);
  draw();
  document.documentElement.dataset.version = data.version;
}

function connection(state, words) {
  $("connection").className = `connection ${state}`;
  if ($("connection").textContent !== words) $("connection").textContent = words;
}

function listen() {
  const events = new EventSource("/dashboard/events");
  events.addEventListener("open", () => connection("live", "live"));
  events.addEventListener("error", () => connection("lost", "connection lost, trying again"));
  events.addEventListener("data", (event) => receive(JSON.parse(event.data)));
  events.addEventListener("service", (event) => {
    drawService(JSON.parse(event.data));
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
  offerMeasures(() => data && drawSpeed(visible(runs)));
  listenToGroups(() => data && drawGroups(visible(runs)));
  listen();
}

start();
