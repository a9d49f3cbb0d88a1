// The console's frame: who is logged in, which page the URL names, and what every page has around it.

import { ApiError, call, hasKey, onRefusal, setKey } from "./api.js";
import * as ask from "./ask.js";
import * as documents from "./documents.js";
import { focusOn, h, icon, oneAtATime, problem, put } from "./dom.js";
import * as finetune from "./finetune.js";
import * as operations from "./operations.js";
import * as reports from "./reports.js";

const PAGES = { ask, documents, finetune, reports, operations };
const app = document.getElementById("app");

let account = null;
let leave = () => {};

/** Return the page, the parts behind it and the settings that the URL names: #/page/part?name=value. */
function readRoute() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [page, ...parts] = path.split("/").map(decode);
  return { page: Object.hasOwn(PAGES, page) ? page : "ask", parts, query: new URLSearchParams(query ?? "") };
}

/** Read a part of the address; one that was cut or mistyped is taken as it stands. */
function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function readLabel(page) {
  return page.label ?? page.title;
}

/** Write settings into the URL without going anywhere, so that it can be sent to somebody. */
function noteQuery(query) {
  const { page, parts } = readRoute();
  const text = query.toString();
  const path = [page, ...parts].map(encodeURIComponent).join("/");
  history.replaceState(null, "", `#/${path}${text ? `?${text}` : ""}`);
}

async function start() {
  try {
    account = await call("GET", "loam/account");
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return;
    const again = h("button", { onclick: oneAtATime(start) }, "Try again");
    put(app, h("main", { class: "login" }, problem(error), again));
    again.focus();
    return;
  }
  showFrame();
  await showPage();
}

function showLogin(error = null) {
  account = null;
  leavePage();
  document.title = "Log in · Loam";
  const field = h("input", { type: "password", id: "key", autocomplete: "off", spellcheck: "false", required: true, placeholder: "loam-…" });
  const submit = oneAtATime(async () => {
    setKey(field.value.trim());
    await start();
  });
  put(
    app,
    h(
      "main",
      { class: "login" },
      h("h1", {}, brand()),
      h("p", { class: "quiet" }, "Your models and your documents, on your own machines."),
      h(
        "form",
        { class: "card", onsubmit: submit },
        h("label", { for: "key" }, "API key"),
        field,
        h("button", { class: "primary" }, "Log in"),
        error ? h("p", { class: "problem", role: "alert" }, error) : null,
      ),
      h("p", { class: "quiet" }, "It is the key that your programs use; an operator gives it out. It stays in this tab until you close it or log out."),
    ),
  );
  field.focus();
}

function logOut() {
  setKey(null);
  showLogin();
}

function brand() {
  return [h("img", { src: "icon.svg", alt: "", width: 24, height: 24 }), " Loam"];
}

function showFrame() {
  const links = Object.entries(PAGES)
    .filter(([, page]) => !page.isForAdmins || account.is_admin)
    .map(([name, page]) => h("a", { href: `#/${name}`, "data-page": name }, readLabel(page)));
  const head = h(
    "header",
    { class: "bar" },
    h("a", { class: "brand", href: "#/ask" }, brand()),
    h("nav", { "aria-label": "Pages" }, links),
    h("div", { class: "account" }, drawAccount()),
  );
  const main = h("main", { id: "page", tabindex: -1 });
  const skip = (event) => {
    event.preventDefault(); // the address is the router's
    main.focus();
  };
  put(app, h("a", { class: "skip button", href: "#page", onclick: skip }, "To the page"), head, main);
}

function drawAccount() {
  const who = account.key_id === null && !hasKey() ? `${account.owner}, no key needed here` : account.owner;
  return [
    h("span", { class: "quiet", title: account.is_admin ? "administrator" : "" }, who),
    h("button", { class: "plain", onclick: switchTheme, title: "Light or dark" }, icon("theme"), h("span", { class: "hidden" }, "Light or dark")),
    hasKey() ? h("button", { class: "plain", onclick: logOut }, "Log out") : null,
  ];
}

/** Ask again whose key it is, and show it; the page stays as it is. */
async function rereadAccount() {
  account = await call("GET", "loam/account");
  put(document.querySelector(".account"), drawAccount());
}

/** End what a page does by itself, with what it has opened before it: a box that stayed would act on the page that is left. */
function leavePage() {
  leave();
  leave = () => {};
  for (const box of document.querySelectorAll("dialog")) box.remove();
}

/** Go to the page that the address names, and take along who is there by keyboard. */
async function goToPage() {
  await showPage();
  if (document.activeElement === document.body) focusOn(document.querySelector("#page h1"));
}

async function showPage() {
  leavePage();
  const route = readRoute();
  const page = PAGES[route.page];
  document.title = `${page.title} · Loam`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === route.page) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else link.removeAttribute("aria-current");
  }
  const root = h("div", { class: "page" }, h("p", { class: "quiet", role: "status" }, "Loading …"));
  put(document.getElementById("page"), root); // what an earlier page still draws goes into its own, which is out of sight
  const isLeft = () => !root.isConnected;
  try {
    const left = (await page.show(root, { ...route, account, noteQuery, rereadAccount, isLeft })) ?? (() => {});
    if (isLeft()) left();
    else leave = left;
  } catch (error) {
    const again = error.status === 404 ? null : h("div", {}, h("button", { onclick: oneAtATime(goToPage) }, "Try again"));
    put(root, h("h1", {}, h("a", { href: `#/${route.page}` }, page.title)), problem(error), again);
  }
}

/** Let a file that misses its place do nothing: the browser would leave the console and show the file. */
function keepFile(event) {
  if (!event.target.closest?.("input, textarea")) event.preventDefault();
}

const refusal = h("div");

/** Tell what no other place tells: that what a button was pressed for has been refused. */
function tellRefusal(event) {
  const page = document.querySelector("#page .page");
  if (page === null || !(event.reason instanceof ApiError)) return;
  event.preventDefault();
  page.prepend(put(refusal, problem(event.reason)));
  refusal.scrollIntoView({ block: "nearest" });
}

function switchTheme() {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark";
  localStorage.setItem("loam.theme", isDark ? "light" : "dark");
  applyTheme();
}

function applyTheme() {
  const theme = localStorage.getItem("loam.theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
}

const GOTO = Object.fromEntries(Object.entries(PAGES).map(([name, page]) => [readLabel(page)[0].toLowerCase(), name]));
let isGoing = false;

/** «/» to the page's main field, «g» and a page's first letter to that page. */
function readKey(event) {
  const isTyping = event.target.closest("input, textarea, select, [contenteditable]");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || account === null) return;
  if (isGoing && event.key in GOTO) location.hash = `#/${GOTO[event.key]}`;
  isGoing = event.key === "g";
  const field = document.querySelector("[data-main-field]");
  if (event.key === "/" && field) {
    event.preventDefault();
    field.focus();
  }
}

onRefusal(() => {
  const had = hasKey();
  setKey(null);
  showLogin(had ? "This key is wrong, or it has been revoked." : null);
});
window.addEventListener("hashchange", () => account !== null && goToPage());
for (const name of ["dragover", "drop"]) window.addEventListener(name, keepFile);
window.addEventListener("keydown", readKey);
window.addEventListener("unhandledrejection", tellRefusal);
window.addEventListener("resize", () => document.querySelector("nav a[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
applyTheme();
start();
