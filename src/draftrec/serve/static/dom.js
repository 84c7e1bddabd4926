// Building the page's parts. Text always goes in as text, so no name of a run can become markup.

export const $ = (id) => document.getElementById(id);

/** An element with properties (`class`, `title`, `on...`, any attribute) and children. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "tone") node.style.setProperty("--tone", value);
    else if (name === "share") node.style.setProperty("--share", String(value));
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Put new children into a host; whoever had the keyboard's focus there keeps it. */
export function fill(host, ...children) {
  const focused = host.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  host.replaceChildren(...children);
  if (focused) host.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

/** Show a section if it has something to show; returns whether it has. */
export function show(id, something) {
  $(id).hidden = !something;
  return Boolean(something);
}

/** A table. Columns are words or nodes; the first cell of a row names it. Columns in which no row has
 * anything to say are left out. */
export function table(allColumns, allRows, caption = null) {
  const says = (value) => (value instanceof Node ? value.textContent : String(value ?? "-")) !== "-";
  const used = allColumns.map((_, i) => i === 0 || !allRows.length || allRows.some((row) => says(row[i])));
  const columns = allColumns.filter((_, i) => used[i]);
  const rows = allRows.map((row) => row.filter((_, i) => used[i]));
  return el(
    "table",
    {},
    caption ? el("caption", {}, caption) : null,
    el("thead", {}, el("tr", {}, ...columns.map((column) => heading(column)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell)))),
  );
}

function heading(column) {
  return column instanceof HTMLTableCellElement ? column : el("th", { scope: "col" }, column);
}

function cell(value, place) {
  if (value instanceof HTMLTableCellElement) return value;
  return place === 0 ? el("th", { scope: "row" }, value) : el("td", {}, value);
}

/** A cell of words instead of figures. */
export const words = (text) => el("td", { class: "words" }, text);

/** A small bar behind a figure; `share` of the largest. */
export const meter = (share) =>
  el("span", { class: "meter", "aria-hidden": "true" }, el("i", { share: Math.max(0, Math.min(1, share)) }));

/** Names with their colours, and what is shown of a value where there is one. */
export function legend(host, entries) {
  fill(host, ...entries.map(({ name, tone, dashed, shown }) =>
    el("li", {}, el("span", { class: dashed ? "dot dashed" : "dot", tone }), name, shown ? el("b", {}, shown) : null)));
}

/** One bar cut into parts, `[{name, value, tone}]`, under a label. */
export function stackBar(label, note, parts) {
  const total = parts.reduce((sum, part) => sum + part.value, 0) || 1;
  const told = parts.filter((p) => p.value > 0).map((p) => `${p.name} ${Math.round((100 * p.value) / total)} %`);
  return el("div", {},
    el("p", { class: "label" }, el("span", {}, label), el("span", {}, note)),
    el("div", { class: "stackbar", role: "img", "aria-label": `${label}: ${told.join(", ")}`, title: told.join(", ") },
      ...parts.filter((p) => p.value > 0).map((p) => el("i", { tone: p.tone, share: p.value / total }))));
}
