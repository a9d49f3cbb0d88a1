// Elements made by calls. Text is always set as text: nothing in this console turns a string into markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element.
 * @param {string} tag its name
 * @param {object} attributes onX functions become listeners; true, false and null switch an attribute on or off
 * @param {...(Node|string|number|null|Array)} children texts and nodes; null and false are left out
 */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an element of a drawing. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...flatten(children));
  return element;
}

function flatten(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Put children in place of those that an element has. */
export function put(element, ...children) {
  element.replaceChildren(...flatten(children));
  return element;
}

const CONTROLS = "a[href], button, input, select, textarea, summary";

/**
 * Draw a part anew; who is in it by keyboard stays there: on the same control of the same row, each row marked by a data-key. Where that is
 * gone, on the first control of the row that stands there now (not on another «Delete»), else on the part's heading, or what holds the part.
 */
export function keepFocus(part, draw) {
  const held = part.contains(document.activeElement) ? document.activeElement : null;
  const row = held?.closest("[data-key]");
  const rows = () => [...part.querySelectorAll("[data-key]")];
  const [rowAt, at] = held ? [rows().indexOf(row), listAlike(row ?? part, held).indexOf(held)] : [-1, -1];
  draw();
  if (held === null || held.isConnected) return;
  const same = row ? findRow(part, row) : part;
  const again = same && listAlike(same, held)[at];
  if (again) {
    again.focus({ preventScroll: true });
    return;
  }
  const there = row && (same ?? rows()[Math.min(rowAt, rows().length - 1)]);
  focusOn(there?.querySelector(CONTROLS) ?? part.querySelector("h1, h2, h3") ?? part.querySelector(CONTROLS) ?? part.closest("[tabindex]"));
}

/** Return the row of the same data-key as one that has been drawn anew. */
function findRow(place, row) {
  return place.querySelector(`[data-key="${CSS.escape(row.dataset.key)}"]`);
}

/** Return the controls in a place that look like one, which may stand elsewhere. */
function listAlike(place, control) {
  return [...place.querySelectorAll(control.localName)].filter((one) => one.id === control.id && one.textContent === control.textContent);
}

/** Put the keyboard back on a control from which it was taken, or on what stands in its place by now. */
export function returnFocus(control) {
  const row = control.isConnected ? null : control.closest("[data-key]");
  const again = row && findRow(document, row);
  (again ? listAlike(again, control)[0] : control)?.focus({ preventScroll: true });
}

/** Put the keyboard on a part, also on one that is no control. */
export function focusOn(part) {
  if (!part) return;
  if (!part.matches(CONTROLS) && !part.hasAttribute("tabindex")) part.setAttribute("tabindex", "-1");
  part.focus();
}

/** Do one thing at a time: what a form or a button is pressed for again, while it is under way, would be done twice. */
export function oneAtATime(work) {
  let isRunning = false;
  return async (event) => {
    event.preventDefault();
    if (isRunning) return;
    isRunning = true;
    const button = event.submitter ?? event.currentTarget;
    button.setAttribute("aria-busy", "true");
    try {
      await work(event);
    } finally {
      isRunning = false;
      button.removeAttribute("aria-busy");
    }
  };
}

const SHAPES = {
  up: "M7 11v9H4v-9zm0 0 4-8c1.6 0 2.5 1 2.2 2.6L12.6 9H19c1.2 0 2 1.1 1.7 2.2l-1.9 7.2c-.2.9-1 1.6-2 1.6H7",
  down: "M7 13V4H4v9zm0 0 4 8c1.6 0 2.5-1 2.2-2.6l-.6-3.4H19c1.2 0 2-1.1 1.7-2.2l-1.9-7.2C18.600 4.700 17.800 4 16.800 4H7",
  close: "M5 5l14 14M19 5 5 19",
  plus: "M12 5v14M5 12h14",
  theme: "M12 3a9 9 0 1 0 9 9 7 7 0 0 1-9-9z",
};

/** Draw a small sign; it says nothing to a screen reader, so a word must stand beside it. */
export function icon(name) {
  const path = svg("path", { d: SHAPES[name], fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linejoin": "round", "stroke-linecap": "round" });
  return svg("svg", { viewBox: "0 0 24 24", width: 18, height: 18, "aria-hidden": "true", class: "icon" }, path);
}

/**
 * Make a table that scrolls sideways where it is too wide.
 * @param {Node[]} head its th
 * @param {Node[]} rows its tr
 * @param {string} kind its class
 */
export function table(head, rows, kind = "") {
  return watchScroll(h("div", { class: "scroll" }, h("table", { class: kind }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows))));
}

/** Let a part be reached, and so scrolled, by keyboard for as long as it holds more than it shows. */
export function watchScroll(part) {
  new ResizeObserver(() => {
    if (part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight) part.setAttribute("tabindex", "0");
    else part.removeAttribute("tabindex");
  }).observe(part);
  return part;
}

/** Show that nothing is here yet, and what to do first. */
export function empty(title, ...what) {
  return h("div", { class: "empty" }, h("h2", {}, title), what);
}

/** Say what comes next, and lead there. */
export function next(...what) {
  return h("p", { class: "next" }, h("b", {}, "Next: "), what);
}

/** Show an error in words, with the id under which the gateway's log has it. */
export function problem(error) {
  const id = error.requestId ? h("span", { class: "quiet" }, ` Request ${error.requestId}.`) : null;
  return h("p", { class: "problem", role: "alert" }, error.message, id);
}

/** Show a figure over its name; one that is words, as a name or a date, is written smaller. */
export function figure(name, value) {
  return h("div", { class: "figure" }, h("b", { class: String(value).length > 9 ? "words" : null }, value), h("span", {}, name));
}

/** Write how many there are of something. */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** Write a size as people read it. */
export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit ? count.toFixed(count < 10 ? 1 : 0) : count} ${units[unit]}`;
}

/** Write a time of the API, seconds since 1970, as people read it. */
export function when(seconds) {
  return new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** Write a span of seconds as people read it. */
export function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** Offer text as a file. */
export function save(name, content, type = "application/octet-stream") {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
