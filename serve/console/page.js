// A report's own page, shown inside the console: read as markup that never runs, and built anew from what is allowed.
// Whatever is not on the lists below is left out, so that a report cannot bring a script, a form or a foreign picture.

import { h, watchScroll } from "./dom.js";

const HTML = new Set(["H1", "H2", "H3", "P", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "A", "FIGURE", "DETAILS", "SUMMARY", "UL", "OL", "LI", "B", "STRONG", "EM", "CODE", "PRE", "BR", "SPAN", "DIV", "SECTION", "SMALL"]);
const DRAWN = new Set(["svg", "g", "path", "rect", "line", "polyline", "polygon", "circle", "ellipse", "text", "tspan", "defs", "use", "clipPath", "title"]);
const ATTRIBUTES = new Set(["class", "colspan", "rowspan", "open", "d", "x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "rx", "ry", "width", "height", "viewBox", "transform", "points", "fill", "stroke", "stroke-width", "text-anchor", "clip-path", "preserveAspectRatio"]);
const STYLES = ["fill", "stroke", "stroke-width", "stroke-linecap", "stroke-linejoin", "stroke-dasharray", "opacity", "fill-opacity", "stroke-opacity", "font", "font-size", "text-anchor", "clip-path"];
const LOCAL = "report:";

const policy = window.trustedTypes?.createPolicy("loam-report", { createHTML: (text) => text }) ?? { createHTML: (text) => text };

/**
 * Build a report's page anew.
 * @param {string} text HTML
 */
export function drawPage(text) {
  const inert = new DOMParser().parseFromString(policy.createHTML(quieten(text)), "text/html");
  const page = h("div", {}, [...inert.body.childNodes].map(copy).filter(Boolean));
  page.addEventListener("click", follow);
  for (const wide of page.querySelectorAll("table, figure")) watchScroll(wide);
  return page;
}

/** Rename what the browser would refuse and complain about; what keeps it from running is that it is not copied. */
function quieten(text) {
  return text.replace(/<[^>]*>/g, (tag) => tag.replace(/^<(\/?)(?:script|style)\b/i, "<$1template").replace(/\s(style|on\w+)=/gi, " data-$1="));
}

function copy(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.textContent;
  if (node.nodeType !== Node.ELEMENT_NODE || !(HTML.has(node.tagName) || DRAWN.has(node.tagName))) return null;
  const element = document.createElementNS(node.namespaceURI, node.localName);
  for (const { name, value } of node.attributes) {
    if (ATTRIBUTES.has(name) && !/url\((?!\s*["']?#)/i.test(value)) element.setAttribute(name, value.replace(/url\((["']?)#/g, `url($1#${LOCAL}`));
  }
  if (node.id) element.id = LOCAL + node.id;
  const target = node.getAttribute("href") ?? node.getAttribute("xlink:href");
  if (target?.startsWith("#")) element.setAttribute("href", `#${LOCAL}${target.slice(1)}`);
  copyStyles(node, element);
  element.append(...[...node.childNodes].map(copy).filter((child) => child !== null));
  return element;
}

function copyStyles(node, element) {
  for (const part of (node.getAttribute("data-style") ?? "").split(";")) {
    const [name, ...rest] = part.split(":");
    const value = rest.join(":").trim();
    if (STYLES.includes(name.trim()) && !/url\((?!\s*["']?#)/i.test(value)) element.style.setProperty(name.trim(), value.replace(/url\((["']?)#/g, `url($1#${LOCAL}`));
  }
}

/** Follow a link within the report: to the answers behind a number. */
function follow(event) {
  const link = event.target.closest("a[href]");
  if (!link) return;
  event.preventDefault();
  const row = document.getElementById(decodeURIComponent(link.getAttribute("href").slice(1)));
  if (!row) return;
  const fold = row.closest("details");
  if (fold) fold.open = true;
  document.querySelectorAll(".report .found").forEach((one) => one.classList.remove("found"));
  row.classList.add("found");
  row.scrollIntoView({ block: "center" });
}
