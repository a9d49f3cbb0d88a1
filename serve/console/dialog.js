// A question that must be answered before something is done.

import { h, oneAtATime, problem, put, returnFocus } from "./dom.js";

/**
 * Ask, and return whether it was confirmed.
 * @param {string|Node} question what
 * @param {string} action the word on the button that does it
 * @param {() => Promise<void>} work done before it closes; what it throws is shown, and the box stays open
 */
export function confirmThat(question, action, work = async () => {}) {
  return new Promise((resolve) => {
    const problems = h("div");
    const opener = document.activeElement;
    let running = null;
    const submit = oneAtATime(async () => {
      running = work();
      try {
        await running;
        box.close();
      } catch (error) {
        running = null;
        put(problems, problem(error));
      }
    });
    const confirm = h("button", { class: "primary" }, action);
    const cancel = h("button", { type: "button", onclick: () => box.close() }, "Cancel");
    const box = h("dialog", { class: "box", "aria-label": action }, h("form", { class: "stack", onsubmit: submit }, typeof question === "string" ? h("p", {}, question) : question, problems, h("div", { class: "row" }, confirm, cancel)));
    box.addEventListener("close", () => {
      box.remove();
      returnFocus(opener); // what lies behind may have been drawn anew meanwhile
      resolve(running?.then(() => true) ?? false); // what has been sent is done, whoever has shut the box
    });
    document.body.append(box);
    box.showModal();
  });
}
