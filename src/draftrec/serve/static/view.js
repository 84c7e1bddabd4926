// What is shown of the page, kept in the address behind the #, so that a link leads to the same view.

let values = new URLSearchParams(location.hash.slice(1));
const listeners = [];

/** A choice as text, or `otherwise` where none was made. */
export const chosen = (name, otherwise = "") => values.get(name) ?? otherwise;

/** A choice of several, or null where none was made. */
export const chosenList = (name) => (values.has(name) ? values.getAll(name).filter(Boolean) : null);

/** Make choices, `{name: text, list, or null to go back to what is usual}`, and draw. */
export function choose(changes, quietly = false) {
  for (const [name, value] of Object.entries(changes)) {
    values.delete(name);
    if (Array.isArray(value)) (value.length ? value : [""]).forEach((one) => values.append(name, one));
    else if (value !== null) values.set(name, value);
  }
  history.replaceState(null, "", values.size ? `#${values}` : location.pathname + location.search);
  if (!quietly) listeners.forEach((listener) => listener());
}

/** Call when a choice was made, here or by a link. */
export const onChoice = (listener) => listeners.push(listener);

addEventListener("hashchange", () => {
  const asked = new URLSearchParams(location.hash.slice(1));
  const place = asked.get("at");
  if (place && asked.size === 1) {
    values.set("at", place); // the link of a section keeps everything else
    history.replaceState(null, "", `#${values}`);
  } else {
    values = asked;
    listeners.forEach((listener) => listener());
  }
  goTo(place);
});

/** Open a section and go there. */
export function goTo(place) {
  const section = place ? document.querySelector(`main section[id="${CSS.escape(place)}"]`) : null;
  if (!section || section.hidden) return;
  section.querySelector("details").open = true;
  section.scrollIntoView();
}

/** Sections fold; what is folded otherwise than usual is a choice. */
export function foldSections() {
  const sections = [...document.querySelectorAll("main section")];
  const usual = new Map(sections.map((section) => [section, section.querySelector("details").open]));
  const apply = () => {
    const turned = new Set(chosenList("fold") ?? []);
    for (const [section, open] of usual) section.querySelector("details").open = open !== turned.has(section.id);
  };
  apply();
  onChoice(apply);
  for (const [section, open] of usual) {
    const details = section.querySelector("details");
    details.addEventListener("toggle", () => {
      const turned = new Set(chosenList("fold") ?? []);
      const before = turned.size;
      if (details.open === open) turned.delete(section.id);
      else turned.add(section.id);
      if (turned.size !== before) choose({ fold: turned.size ? [...turned] : null }, true);
    });
  }
}
