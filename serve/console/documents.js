// Documents: the stores, what is in each, bringing files in, and searching them with every stage's ranks.

import { MOST_LISTED, call, listAll, upload } from "./api.js";
import { confirmThat } from "./dialog.js";
import { bytes, count, empty, h, keepFocus, next, oneAtATime, problem, put, table, when } from "./dom.js";
import { dropFile, isWaiting, keepFile, readChanges, readListing } from "./listing.js";
import { drawAssistantForm, listChatting, nameStore } from "./names.js";
import { drawSearch, readValue } from "./search.js";
import { CHANGED, OVER, SAME, watch, watchList } from "./watch.js";

export const title = "Documents";

const AT_ONCE = 3;

export async function show(root, context) {
  const [storeId] = context.parts;
  return storeId ? showStore(root, storeId, context) : showStores(root, context);
}

async function showStores(root, { isLeft }) {
  const read = () => listAll("vector_stores");
  const stores = await read();
  if (isLeft()) return null;
  const name = h("input", { id: "store-name", placeholder: "handbook", required: true, maxlength: 256, "data-main-field": true });
  const problems = h("div");
  const make = oneAtATime(async () => {
    try {
      const store = await call("POST", "vector_stores", { body: { name: name.value.trim() } });
      if (!isLeft()) location.hash = `#/documents/${store.id}`;
    } catch (error) {
      put(problems, problem(error));
    }
  });
  const form = h(
    "form", { class: "row", onsubmit: make },
    h("label", { for: "store-name" }, "New store"), h("div", {}, name), h("button", { class: "primary" }, "Create the store"),
  );
  const first = empty("No documents yet", h("p", {}, "A store is a set of documents that is searched as one. Name the first one, then drop files into it."));
  const list = h("div");
  put(root, h("h1", {}, title), form, problems, list);
  return watchList(stores, list, { read, draw: (some) => (some.length ? drawStores(some) : first), isWaiting });
}

function drawStores(stores) {
  const rows = stores.map((store) => h(
    "tr", { "data-key": store.id },
    h("td", { class: "long" }, h("a", { href: `#/documents/${encodeURIComponent(store.id)}` }, nameStore(store))),
    h("td", {}, h("span", { class: `badge ${store.status}` }, store.status.replace("_", " "))),
    h("td", { class: "number" }, store.file_counts.completed),
    h("td", { class: "number" }, store.file_counts.failed || ""),
    h("td", { class: "number" }, bytes(store.usage_bytes)),
    h("td", { class: "wide-only" }, when(store.last_active_at)),
  ));
  const head = ["Store", "Status", "Files", "Failed", "Size", "Last used"].map((text, at) => h("th", { class: at > 1 && at < 5 ? "number" : at === 5 ? "wide-only" : "" }, text));
  return h("div", { class: "card" }, table(head, rows));
}

async function showStore(root, storeId, context) {
  const store = await call("GET", `vector_stores/${encodeURIComponent(storeId)}`);
  if (context.isLeft()) return null;
  const listing = await readListing(store.id);
  if (context.isLeft()) return null;
  const view = { store, listing, uploads: [], sent: 0, hasFailed: false, draw: null, watcher: null };
  const [list, following] = [h("div"), h("div")];
  view.draw = () => {
    keepFocus(list, () => put(list, drawFiles(view)));
    put(following, drawNext(view));
  };
  const look = async () => {
    const isChanged = await readChanges(listing);
    if (isChanged || view.hasFailed) view.draw();
    view.hasFailed = false;
    if (!listing.isStale && !listing.files.some(isWaiting)) return OVER;
    return isChanged ? CHANGED : SAME;
  };
  const tell = (error) => {
    view.hasFailed = true;
    put(following, problem(error));
  };
  view.watcher = watch(look, { failed: tell });
  view.draw();
  if (listing.files.some(isWaiting)) view.watcher.wake();
  const head = h(
    "div", { class: "row between" },
    h("h1", {}, h("a", { href: "#/documents" }, title), " / ", nameStore(store)),
    h("div", { class: "row" }, store.name === store.id ? null : h("code", { class: "quiet small" }, store.id), h("a", { class: "button", href: `#/ask?${new URLSearchParams({ store: store.id })}` }, "Ask these documents"),
      h("button", { class: "danger", onclick: () => removeStore(view, context) }, "Delete the store")),
  );
  put(root, head, drawDrop(view), following, drawSearch(store, context), drawAssistant(store), list);
  return view.watcher.stop;
}

/** Offer to make an assistant of the store; what it needs is asked for when it is opened. */
function drawAssistant(store) {
  const place = h("div", { class: "assistant" });
  const open = async () => {
    if (!fold.open || place.hasChildNodes()) return;
    try {
      put(place, drawAssistantForm({ models: await listChatting(), stores: await listAll("vector_stores"), searched: [store.id] }));
    } catch (error) {
      put(place, problem(error));
    }
  };
  const fold = h("details", { class: "card", ontoggle: open }, h("summary", {}, "Make an assistant of it"), place);
  return fold;
}

async function removeStore({ store, listing: { files } }, { isLeft }) {
  const held = files.length < MOST_LISTED ? files.length : Math.max(store.file_counts.total, files.length);
  const question = `Delete the store «${nameStore(store)}» with its ${count(held, "document")}? The uploaded files stay.`;
  const remove = () => call("DELETE", `vector_stores/${encodeURIComponent(store.id)}`);
  if ((await confirmThat(question, "Delete", remove)) && !isLeft()) location.hash = "#/documents";
}

/** A place to drop files on, and a button for those who do not drag. */
function drawDrop(view) {
  const input = h("input", { type: "file", multiple: true, id: "files", class: "hidden", tabindex: -1, onchange: () => { send([...input.files]); input.value = ""; } });
  const drop = h(
    "div", { class: "drop" },
    h("p", {}, "Drop files here, or ", h("button", { onclick: () => input.click() }, "choose files")),
    h("p", { class: "quiet small" }, "PDF, DOCX, XLSX, PPTX, HTML, Markdown, CSV, JSON, EPUB, mail, plain text and source code."),
    h("label", { for: "files", class: "hidden" }, "Files"), input,
  );
  const send = async (files) => {
    const waiting = files.map((file) => ({
      key: `upload-${(view.sent += 1)}`, file, isRunning: true, error: null, state: "waiting",
      bar: h("progress", { value: 0, max: 1, "aria-label": `Upload of ${file.name}` }),
    }));
    view.uploads.push(...waiting);
    const queue = [...waiting];
    const work = async () => {
      while (queue.length) await bringIn(view, queue.shift());
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  };
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") send([...event.dataTransfer.files]);
    });
  }
  return drop;
}

async function bringIn(view, one) {
  one.state = "uploading";
  view.draw();
  try {
    const file = await upload(one.file, "assistants", (share) => { one.bar.value = share; });
    const attached = await call("POST", `vector_stores/${encodeURIComponent(view.store.id)}/files`, { body: { file_id: file.id } });
    keepFile(view.listing, { ...attached, filename: file.filename });
    view.uploads.splice(view.uploads.indexOf(one), 1);
    view.watcher.wake();
  } catch (error) {
    one.error = error;
    one.state = "failed";
  }
  one.isRunning = false;
  view.draw();
}

function drawFiles(view) {
  const { files } = view.listing;
  if (!files.length && !view.uploads.length) {
    return empty("This store is empty", h("p", {}, "Drop some files above. Each is read, cut into passages and made searchable; then ask about it under Ask."));
  }
  const uploads = view.uploads.map((one) => h(
    "tr", { "data-key": one.key },
    h("td", {}, one.file.name),
    h("td", {}, one.error ? h("span", { class: "badge failed" }, "failed") : one.bar),
    h("td", { class: "number" }, bytes(one.file.size)),
    h("td", {}, one.error ? one.error.message : one.state),
    h("td", {}, one.error ? h("button", { class: "plain", onclick: () => { view.uploads.splice(view.uploads.indexOf(one), 1); view.draw(); } }, "Dismiss") : null),
  ));
  const counts = files.reduce((sums, one) => ({ ...sums, [one.status]: (sums[one.status] ?? 0) + 1 }), {});
  const listed = Object.entries(counts).map(([status, count]) => `${count} ${status.replace("_", " ")}`).join(", ");
  const summary = files.length < MOST_LISTED ? listed : `${listed}; only the newest ${MOST_LISTED.toLocaleString("en")} are listed here`;
  const rows = files.map((one) => drawFile(view, one));
  const head = ["Document", "Status", "Size", "Detail", "Actions"].map((text, at) => h("th", { class: at === 2 ? "number" : "" }, text));
  return h(
    "section", { class: "card", "aria-label": "Files" },
    h("header", {}, h("h2", {}, "Files"), h("span", { class: "quiet", role: "status" }, summary)),
    table(head, [uploads, rows], "files"),
  );
}

/** Say what comes next, once nothing is on its way any more. */
function drawNext({ store, uploads, listing: { files } }) {
  if (!uploads.length && !files.length) return null;
  if (uploads.some((one) => one.isRunning) || files.some(isWaiting)) {
    return h("p", { class: "quiet" }, "Each file is read, cut into passages and made searchable. This page goes on by itself.");
  }
  if (!files.some((one) => one.status === "completed")) return next("none of these could be read. The reason stands beside each; bring in other files.");
  const ask = h("a", { href: `#/ask?${new URLSearchParams({ store: store.id })}` }, "ask these documents");
  return next(ask, ", search them below, or make an assistant of them.");
}

function drawFile(view, one) {
  const remove = async () => {
    const isUpload = one.id.startsWith("file-");
    const question = isUpload ? `Delete «${one.filename}» for good, from every store?` : `Take «${one.filename}» out of this store?`;
    const path = isUpload ? `files/${one.id}` : `vector_stores/${encodeURIComponent(view.store.id)}/files/${one.id}`;
    if (!(await confirmThat(question, "Delete", () => call("DELETE", path)))) return;
    dropFile(view.listing, one.id);
    view.draw();
  };
  const reason = one.last_error ? h("span", { class: "reason" }, one.last_error.message) : drawAttributes(one.attributes);
  return h(
    "tr", { "data-key": one.id },
    h("td", {}, one.filename),
    h("td", {}, h("span", { class: `badge ${one.status}` }, one.status.replace("_", " "))),
    h("td", { class: "number" }, one.usage_bytes ? bytes(one.usage_bytes) : ""),
    h("td", {}, reason),
    h("td", {}, h("div", { class: "row" },
      h("button", { class: "plain", onclick: () => editAttributes(view, one), "aria-label": `Attributes of ${one.filename}` }, "Attributes"),
      h("button", { class: "plain danger", onclick: remove, "aria-label": `Delete ${one.filename}` }, "Delete"))),
  );
}

function drawAttributes(attributes) {
  return Object.entries(attributes).map(([name, value]) => h("span", { class: "badge" }, `${name}: ${value}`));
}

async function editAttributes(view, one) {
  const text = Object.entries(one.attributes).map(([name, value]) => `${name}: ${JSON.stringify(value)}`).join("\n");
  const field = h("textarea", { rows: 5, value: text, "aria-label": "Attributes", placeholder: 'department: "sales"\nyear: 2026' });
  const save = async () => {
    const path = `vector_stores/${encodeURIComponent(view.store.id)}/files/${one.id}`;
    keepFile(view.listing, await call("POST", path, { body: { attributes: readAttributes(field.value) } }));
  };
  const what = h("div", {}, h("p", {}, `What filters can find «${one.filename}» by, one a line:`), field);
  if (await confirmThat(what, "Save", save)) view.draw();
}

/** Read lines of «name: value»; a value is a number, true, false or a text, with or without quotes. */
function readAttributes(text) {
  const lines = text.split("\n").filter((line) => line.trim());
  return Object.fromEntries(lines.map((line) => {
    const [name, ...rest] = line.split(":");
    if (!rest.length) throw new Error(`«${line}»: wanted a name, a colon and a value.`);
    return [name.trim(), readValue(rest.join(":").trim())];
  }));
}
