// One passage in its document, marked at its offsets: what stands behind an [n].

import { call } from "./api.js";
import { h, icon, keepFocus, problem, put } from "./dom.js";

const STEP = 4000;
const MOST = 1_000_000; // characters on either side that the API gives

/**
 * Open a passage beside the page.
 * @param {string} chunkId which
 * @param {() => void} closed called when the person has closed it
 */
export async function openPassage(chunkId, closed = () => {}) {
  const body = h("div", { class: "drawer-body", tabindex: 0 }, h("p", { class: "quiet", role: "status" }, "Loading …"));
  const title = h("h2", { id: "passage-title" }, "Passage");
  const close = h("button", { class: "plain", onclick: () => dialog.close(), title: "Close (Esc)" }, icon("close"), h("span", { class: "hidden" }, "Close"));
  const dialog = h("dialog", { class: "drawer", "aria-labelledby": "passage-title" }, h("div", { class: "drawer-head" }, title, close), body);
  dialog.addEventListener("close", () => {
    dialog.remove();
    closed();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  await load(chunkId, STEP, title, body);
}

async function load(chunkId, around, title, body) {
  let passage;
  try {
    passage = await call("GET", `loam/passages/${encodeURIComponent(chunkId)}`, { query: { around } });
  } catch (error) {
    put(body, problem(error));
    return;
  }
  title.textContent = passage.file;
  const { document: around_it } = passage;
  const letters = Array.from(around_it.text); // offsets count characters as Unicode has them, not JavaScript's halves
  const cut = (from, to) => letters.slice(from - around_it.start, to - around_it.start).join("");
  const mark = h("mark", { tabindex: -1 }, cut(passage.start, passage.end));
  const next = Math.min(around * 4, MOST);
  const more = (label) => next > around ? h("button", { class: "plain", onclick: () => load(chunkId, next, title, body) }, label) : null;
  const before = body.querySelector("mark")?.getBoundingClientRect().top;
  keepFocus(body, () => put(
    body,
    describePlace(passage),
    around_it.start > 0 ? more("Show more of the document before this") : null,
    h("div", { class: "document" }, cut(around_it.start, passage.start), mark, cut(passage.end, around_it.end)),
    around_it.end < around_it.length ? more("Show more of the document behind this") : null,
  ));
  if (before === undefined) mark.scrollIntoView({ block: "center" });
  else body.scrollTop += mark.getBoundingClientRect().top - before; // who reads on stays where he reads
}

function describePlace(passage) {
  const heading = passage.heading ? h("p", { class: "heading-path" }, passage.heading) : null;
  const page = passage.page === null ? null : `page ${passage.page}`;
  const place = [`store ${passage.store}`, page, `characters ${passage.start} to ${passage.end} of ${passage.document.length}`];
  return [heading, h("p", { class: "quiet" }, place.filter(Boolean).join(" · "))];
}
