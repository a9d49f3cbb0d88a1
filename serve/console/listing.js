// A store's files as the page knows them: read once, then only what can have changed since. Draws nothing.

import { ApiError, MOST_LISTED, call, listAll } from "./api.js";

const PAGE = 100;

/**
 * Read a store's files, the newest first, at most MOST_LISTED.
 * @returns {Promise<{path: string, files: object[], isStale: boolean, changes: number}>} isStale: somebody else has changed the
 *   store meanwhile; changes: how often this page has
 */
export async function readListing(storeId) {
  const path = `loam/documents/${encodeURIComponent(storeId)}`;
  return { path, files: await listAll(path), isStale: false, changes: 0 };
}

/** Tell whether a file, or one of a store's, is on its way still. */
export function isWaiting(file) {
  return file.status === "in_progress";
}

/** Put what the API answered of a file in the place of what was known of it; a new one goes to the top. */
export function keepFile(listing, file) {
  listing.changes += 1;
  const at = listing.files.findIndex((one) => one.id === file.id);
  if (at < 0) listing.files = [file, ...listing.files].slice(0, MOST_LISTED);
  else listing.files = listing.files.with(at, { ...listing.files[at], ...file });
}

/** Forget a file. */
export function dropFile(listing, id) {
  listing.changes += 1;
  listing.files = listing.files.filter((one) => one.id !== id);
}

/**
 * Ask what became of the files on their way: which of them still are, then for the part of the list where some are no longer.
 * @returns {Promise<boolean>} whether anything changed
 */
export async function readChanges(listing) {
  const ended = await findEnded(listing);
  const isChanged = ended.size > 0 && (await readEnded(listing, ended));
  const isReread = listing.isStale && !listing.files.some(isWaiting) && (await readAll(listing));
  return isChanged || isReread;
}

/** Return the ids of files that were on their way and are no longer. The oldest come first, so that one page tells of those whose turn it is. */
async function findEnded(listing) {
  const page = await call("GET", listing.path, { query: { filter: "in_progress", order: "asc", limit: PAGE } });
  const still = new Set(page.data.map((file) => file.id));
  const known = new Set(listing.files.map((file) => file.id));
  if (page.data.some((file) => !known.has(file.id))) listing.isStale = true;
  const newest = page.has_more ? listing.files.findIndex((file) => still.has(file.id)) : 0; // of newer ones it says nothing
  if (newest < 0) return new Set();
  return new Set(listing.files.slice(newest).filter((file) => isWaiting(file) && !still.has(file.id)).map((file) => file.id));
}

/** Read again the part of the list from the newest of some files to the oldest. */
async function readEnded(listing, ended) {
  const first = listing.files.findIndex((file) => ended.has(file.id));
  let wanted = listing.files.findLastIndex((file) => ended.has(file.id)) - first + 1;
  let after = listing.files[first - 1]?.id;
  const found = new Map();
  try {
    for (; wanted > 0; wanted -= PAGE) {
      const page = await call("GET", listing.path, { query: { after, limit: Math.min(wanted, PAGE) } });
      for (const file of page.data) found.set(file.id, file);
      if (!page.has_more) break;
      after = page.last_id;
    }
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 404)) throw error;
    return readAll(listing); // the file that stood before them has gone
  }
  if ([...ended].some((id) => !found.has(id))) return readAll(listing); // the list is no longer as it was known
  listing.files = listing.files.map((file) => (isWaiting(file) && found.get(file.id)) || file);
  return true;
}

async function readAll(listing) {
  const before = listing.changes;
  const files = await listAll(listing.path);
  if (listing.changes !== before) return false; // what was read may lack what the person has just done: another time
  listing.files = files;
  listing.isStale = false;
  return true;
}
