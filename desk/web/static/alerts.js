// The page "alerts": drawn anew by the desk when an alert comes, changes or is acknowledged.
import { ask, holdStill, listen, showTimes } from "./desk.js";

const AGAIN_MS = 300;
const list = document.getElementById("alert-list");
let due = null;

async function refresh() {
  due = null;
  try {
    const text = await (await ask(location.href)).text();
    const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("alert-list");
    const held = list.contains(document.activeElement) ? document.activeElement.dataset.ack : null;
    list.replaceChildren(...fresh.childNodes);
    holdStill(list);
    showTimes(list);
    if (held) [...list.querySelectorAll("button[data-ack]")].find((one) => one.dataset.ack === held)?.focus();
  } catch { /* the desk does not answer; the page says so already */ }
}

listen((kind) => {
  if (kind === "alert" || kind === "ack") due ??= setTimeout(refresh, AGAIN_MS);
}, list.dataset.last);
