// Looking again at what changes by itself: one look at a time, seldom while nothing happens, never while nobody sees it.

import { keepFocus, problem, put } from "./dom.js";

const SHORTEST_MS = 700;
const LONGEST_MS = 5600;

/** What a look has found: something new, nothing new, or that nothing more is to come. */
export const CHANGED = "changed";
export const SAME = "same";
export const OVER = "over";

/**
 * Look again and again, from the first `wake` on until a look finds that it is over; a later `wake` begins anew.
 * The wait doubles while nothing changes, and is short again after a change, an action of the person or a return to the tab.
 * @param {() => Promise<string>} look asks, shows, and returns CHANGED, SAME or OVER
 * @param {{failed: (error: Error) => void, shortest?: number, longest?: number}} how what is told when a look fails; waits in milliseconds
 * @returns {{now: () => Promise<void>, wake: () => void, stop: () => void}} look at once (after the look that is under way), before long, no more
 */
export function watch(look, { failed, shortest = SHORTEST_MS, longest = LONGEST_MS }) {
  const state = { wait: shortest, isOver: true, isStopped: false, isDue: false, wokenTo: null, timer: null, due: 0, running: null };

  const lookOnce = async () => {
    state.wokenTo = null;
    try {
      const seen = await look();
      state.isOver = seen === OVER;
      state.wait = seen === CHANGED ? shortest : Math.min(2 * state.wait, longest);
    } catch (error) {
      if (!state.isStopped) failed(error);
      state.wait = longest;
    }
    if (state.wokenTo !== null) rouse(state.wokenTo); // a look that began before must not undo it
  };
  const run = async () => {
    do {
      state.isDue = false;
      await lookOnce();
    } while (state.isDue && !state.isStopped);
    state.running = null;
    plan();
  };
  const halt = () => {
    clearTimeout(state.timer);
    state.timer = null;
  };
  const plan = () => {
    if (state.running || state.isOver || state.isStopped || document.hidden) return;
    const due = Date.now() + state.wait;
    if (state.timer !== null && state.due <= due) return; // many actions in a row must not put a look off
    halt();
    state.due = due;
    state.timer = setTimeout(begin, state.wait);
  };
  const begin = () => {
    halt();
    state.running ??= run();
    return state.running;
  };
  const rouse = (wait) => {
    state.wait = wait;
    state.wokenTo = wait;
    state.isOver = false;
  };
  const now = () => {
    rouse(shortest / 2); // the wait after this look is the shortest one
    state.isDue = state.running !== null;
    return begin();
  };
  const wake = () => {
    rouse(shortest);
    plan();
  };
  const showOrHide = () => {
    if (document.hidden) halt();
    else if (!state.isOver && !state.isStopped) now();
  };
  const stop = () => {
    state.isStopped = true;
    halt();
    document.removeEventListener("visibilitychange", showOrHide);
  };
  document.addEventListener("visibilitychange", showOrHide);
  return { now, wake, stop };
}

/**
 * Show a list, and read it again for as long as something in it is on its way.
 * @param {object[]} first the list as it has just been read
 * @param {Element} place where it stands; rows keep the keyboard by their data-key
 * @param {{read: () => Promise<object[]>, draw: (list: object[]) => Node, isWaiting: (one: object) => boolean}} how
 * @returns {() => void} ends it
 */
export function watchList(first, place, { read, draw, isWaiting }) {
  let shown = first;
  let fault = null;
  const show = () => keepFocus(place, () => put(place, fault && problem(fault), draw(shown)));
  const look = async () => {
    const found = await read();
    const isChanged = fault !== null || JSON.stringify(found) !== JSON.stringify(shown);
    [shown, fault] = [found, null];
    if (isChanged) show();
    if (!found.some(isWaiting)) return OVER;
    return isChanged ? CHANGED : SAME;
  };
  const tell = (error) => {
    fault = error;
    show();
  };
  const watcher = watch(look, { failed: tell });
  show();
  if (first.some(isWaiting)) watcher.wake();
  return watcher.stop;
}
