// The gateway's API as the console asks it: the same routes and the same key as any other client.
// The key lives in this tab's session storage; it ends with the tab or when the person logs out.

const BASE = new URL("../v1/", document.baseURI);
const KEY = "loam.key";

let key = sessionStorage.getItem(KEY);
let refused = () => {};

/** What the API answered in place of what was wanted. */
export class ApiError extends Error {
  constructor(message, status, code, requestId) {
    super(message);
    this.status = status;
    this.code = code;
    this.requestId = requestId;
  }
}

/** Call a function when the API refuses the key. */
export function onRefusal(call) {
  refused = call;
}

export function hasKey() {
  return key !== null;
}

export function setKey(value) {
  key = value;
  if (value === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, value);
}

function locate(path, query = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

function authorize(headers = {}) {
  return key === null ? headers : { ...headers, authorization: `Bearer ${key}` };
}

/** Ask, and return the answer's head; its body has not been read. */
async function ask(method, path, { body, query, signal } = {}) {
  const headers = authorize(body === undefined ? {} : { "content-type": "application/json" });
  const content = body === undefined ? undefined : JSON.stringify(body);
  const asker = key;
  let answer;
  try {
    answer = await fetch(locate(path, query), { method, headers, body: content, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The gateway does not answer. It may be restarting, or the network is down: try again.", 0, "unreachable", null);
  }
  if (!answer.ok) throw await describe(answer, asker);
  return answer;
}

async function describe(answer, asker) {
  const text = await answer.text();
  return toError(answer.status, text, answer.headers.get("x-request-id"), asker);
}

function toError(status, text, requestId, asker) {
  if (status === 401 && asker === key) refused(); // of a key that has been dropped meanwhile, nothing more is to be told
  try {
    const { message, code } = JSON.parse(text).error;
    return new ApiError(message, status, code, requestId);
  } catch {
    return new ApiError(`The gateway answered ${status} without a reason.`, status, null, requestId);
  }
}

/** Return what a body is read as; the browser's own words for a connection that went meanwhile tell a person nothing. */
async function whole(body, words) {
  try {
    return await body;
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(words, 0, "broken_off", null);
  }
}

const BROKEN = "The gateway's answer broke off: try again.";

/** Ask, and return the answer's JSON. */
export async function call(method, path, options) {
  return whole((await ask(method, path, options)).json(), BROKEN);
}

/** Fetch a file. */
export async function fetchBlob(path, query) {
  return whole((await ask("GET", path, { query })).blob(), BROKEN);
}

/** Fetch a text. */
export async function fetchText(path, query) {
  return whole((await ask("GET", path, { query })).text(), BROKEN);
}

export const MOST_LISTED = 1000;

/** Return the objects of a list, page by page: all of them, or the first so many. */
export async function listAll(path, query = {}, most = MOST_LISTED) {
  const found = [];
  let after = null;
  do {
    const page = await call("GET", path, { query: { limit: 100, ...query, after } });
    found.push(...page.data);
    after = page.has_more ? page.last_id : null;
  } while (after !== null && found.length < most);
  return found;
}

const CUT_SHORT = "The answer broke off: what stands here is not all of it.";

/** Post, and yield the events of the answer's stream as they come; an error event is thrown. */
export async function* stream(path, body, signal) {
  const answer = await ask("POST", path, { body: { ...body, stream: true }, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  let isDone = false;
  try {
    for (;;) {
      const { value, done } = await whole(reader.read(), CUT_SHORT);
      if (done) break;
      waiting += value;
      const events = waiting.split(/\r?\n\r?\n/);
      waiting = events.pop();
      for (const event of events) {
        const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
        if (data === "[DONE]") {
          isDone = true;
        } else if (data) {
          const value = JSON.parse(data);
          if (value.error) throw new ApiError(value.error.message, 0, value.error.code, null);
          isDone ||= value.type === "response.completed" || value.type === "response.incomplete";
          yield value;
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => null);
  }
  if (!isDone) throw new ApiError(CUT_SHORT, 0, "broken_off", null);
}

/**
 * Upload a file.
 * @param {File} file what
 * @param {string} purpose as OpenAI has it
 * @param {(share: number) => void} progress told 0 to 1
 */
export function upload(file, purpose, progress) {
  const asker = key;
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", locate("files"));
    for (const [name, value] of Object.entries(authorize())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => event.lengthComputable && progress(event.loaded / event.total));
    request.addEventListener("load", () => {
      const id = request.getResponseHeader("x-request-id");
      if (request.status === 200) resolve(JSON.parse(request.responseText));
      else reject(toError(request.status, request.responseText, id, asker));
    });
    request.addEventListener("error", () => reject(new ApiError("The upload broke off: try again.", 0, "unreachable", null)));
    const form = new FormData();
    form.append("purpose", purpose);
    form.append("file", file, file.name);
    request.send(form);
  });
}
