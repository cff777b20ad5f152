// One stream of changes for all pages of this browser, in a SharedWorker: over HTTP/1.1 a browser opens six connections
// to a host at most, and a stream for each page would leave none for the seventh. It is not slowed down while pages are
// hidden, so that they tell of an alert, too.
import { follow } from "./changes.js";

const KEPT = 1000;
const pages = new Map(); // a page's port, and the change up to which it knows
let kept = [];
let from = null; // every change after this one is kept; null: not known yet
let state = null;
let stop = null;

function hear(message) {
  if (message.word === "change") {
    kept.push(message);
    if (kept.length > KEPT) from = kept.shift().id;
  } else if (message.word === "hello" || message.word === "reload") {
    [kept, from] = [[], message.id];
  } else if (message.word !== "refused") {
    state = message;
  }
  for (const [page, last] of pages) {
    if (message.word === "hello" && last !== null && last < from) page.postMessage({ word: "reload" });
    page.postMessage(message);
  }
}

function welcome(page, last) {
  pages.set(page, last);
  if (!stop) {
    [kept, from, state] = [[], last, null];
    stop = follow(last, hear);
    return;
  }
  if (state) page.postMessage(state);
  if (last === null || from === null) return;
  if (last < from) page.postMessage({ word: "reload" });
  else for (const one of kept) if (one.id > last) page.postMessage(one);
}

function leave(page) {
  pages.delete(page);
  if (pages.size) return;
  stop?.();
  stop = null;
}

addEventListener("connect", ({ ports: [page] }) => {
  page.onmessage = ({ data }) => (data.word === "bye" ? leave(page) : welcome(page, data.last));
});
