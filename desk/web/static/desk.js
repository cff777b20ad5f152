// What every page does: the clock, UTC or local times, acknowledging, and the stream of changes.

import { follow } from "./changes.js";

export const CLASSES = ["earthquake", "blast", "collapse", "landslide", "noise", "undecided", "unclassified", "slow"];
const LOCAL = "talus-local-time";
const STILL_MS = 700;

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim() || "#888";
}

function csrf() {
  return document.querySelector("meta[name=csrf]")?.content ?? "";
}

export function may(role) {
  const order = ["viewer", "operator", "admin"];
  const mine = document.querySelector("meta[name=role]")?.content ?? "viewer";
  return order.indexOf(mine) >= order.indexOf(role);
}

function toLogin() {
  location.href = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
}

export async function ask(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  if (answer.status === 401) toLogin();
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `${answer.status}`);
  return answer;
}

export async function send(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-csrf-token": csrf() },
    body: JSON.stringify(body),
  });
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 401) toLogin();
  if (!answer.ok) throw Object.assign(new Error(said.error ?? `the desk answered ${answer.status}`), { status: answer.status });
  return said;
}

const local = () => localStorage.getItem(LOCAL) === "1";
const two = (n) => String(n).padStart(2, "0");

export function timeText(iso, seconds = true) {
  // Built by hand: the formatting of the browser follows the reader's language, a log must not.
  const t = new Date(iso);
  const [y, mo, d, h, mi, s] = local()
    ? [t.getFullYear(), t.getMonth() + 1, t.getDate(), t.getHours(), t.getMinutes(), t.getSeconds()]
    : [t.getUTCFullYear(), t.getUTCMonth() + 1, t.getUTCDate(), t.getUTCHours(), t.getUTCMinutes(), t.getUTCSeconds()];
  return `${y}-${two(mo)}-${two(d)} ${two(h)}:${two(mi)}${seconds ? `:${two(s)}` : ""}`;
}

function clockText(iso) {
  // With its date where that is not today.
  const [text, today] = [timeText(iso), timeText(new Date(Date.now() + skew)).slice(0, 10)];
  return text.slice(0, 10) === today ? text.slice(11) : text;
}

export function showTimes(root = document) {
  for (const node of root.querySelectorAll("time[data-utc]")) node.textContent = timeText(node.dataset.utc);
  for (const node of root.querySelectorAll("time[data-clock]")) node.textContent = clockText(node.dataset.clock);
  for (const node of root.querySelectorAll(".tz")) node.textContent = zone();
}

export const zone = () => (local() ? "local" : "UTC");

function ago(iso) {
  const s = (Date.now() + skew - new Date(iso)) / 1000;
  if (s < -60) return `dated ${Math.round(-s / 60)} min ahead, a clock is wrong`;
  if (s < 0) return "0 s ago";
  return s < 90 ? `${Math.round(s)} s ago` : s < 5400 ? `${Math.round(s / 60)} min ago` : s < 172800 ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} days ago`;
}

export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(node.dataset, value);
    else if (name === "class") node.className = value;
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function holdStill(list) {
  // A click that was meant for what stood there before must acknowledge nothing: buttons that have moved wait for a while.
  list.classList.add("moved");
  clearTimeout(list.still);
  list.still = setTimeout(() => list.classList.remove("moved"), STILL_MS);
}

export function callWords(call) {
  const time = call.time ? element("time", { data: { clock: call.time } }, clockText(call.time)) : null;
  return element("span", {}, call.words, time ? " " : null, time, " ");
}

export function mark(name) {
  return element("span", { class: `class ${CLASSES.includes(name) ? name : "unclassified"}` }, name);
}

export function eventRow(row) {
  const time = element("time", { data: { utc: row.onset } }, timeText(row.onset));
  const cells = [
    element("td", {}, element("a", { href: `/event/${encodeURIComponent(row.id)}` }, time), element("span", { class: "under" }, row.place)),
    element("td", { class: "wide" }, row.sensor),
    element("td", {}, mark(row.class), row.review ? element("span", { class: "reviewed" }, "✓") : null),
    element("td", { class: "number" }, row.probability === null ? "" : row.probability.toFixed(2)),
    element("td", { class: "number wide" }, row.ratio === null ? "" : row.ratio.toFixed(1)),
    element("td", { class: "number wide" }, row.duration_s === null ? "" : `${row.duration_s.toFixed(1)} s`),
    element("td", {},
      row.ended ? null : element("span", { class: "going" }, "going on "),
      row.alert ? element("span", { class: `alert-word ${row.alert.split(" ")[0]}` }, row.alert_words) : null,
      row.exercise ? element("span", { class: "exercise-word" }, " exercise") : null,
      row.imported ? element("span", { class: "dim" }, " imported") : null),
  ];
  return element("tr", { class: row.exercise ? "exercise" : "", data: { id: row.id, onset: row.onset } }, ...cells);
}

const WRONG_MS = 30_000;
let skew = 0;

export function listen(change, last) {
  // Tells `change` the kind, the subject and the row of what is new after the change `last` (null: from now on).
  const link = document.getElementById("link");
  const lost = document.getElementById("lost");
  const say = (text, since) => {
    link.textContent = text;
    link.className = since ? "link bad" : "link";
    lost.hidden = !since;
    lost.textContent = since ? `No connection to the desk since ${clockText(new Date(since + skew))} ${zone()}: this page is as it was then, and alerts may be open that it does not show.` : "";
  };
  last = last ? Number(last) : null;
  shared(last, (message) => {
    if (message.word === "live") say("live", null);
    else if (message.word === "lost") say("not live", message.since);
    else if (message.word === "reload") location.reload();
    else if (message.word === "refused") ask("/api/v1/alerts?open=1&limit=1").catch(() => {}); // leads to the login where the session has ended
    else if (message.word === "change") {
      if (message.kind === "alert" || message.kind === "ack") countSoon();
      change(message.kind, message.subject, message.row);
    }
  });
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  count();
}

function shared(last, hear) {
  // The stream that all pages of this browser share; where there are no SharedWorkers, one of this page's own.
  if (!globalThis.SharedWorker) {
    alone(last, hear);
    return;
  }
  const worker = new SharedWorker(new URL("worker.js", import.meta.url), { type: "module", name: "talus" });
  worker.onerror = () => {
    worker.port.close();
    worker.onerror = null;
    alone(last, hear);
  };
  worker.port.onmessage = ({ data }) => hear(data);
  worker.port.postMessage({ word: "from", last });
  addEventListener("pagehide", () => worker.port.postMessage({ word: "bye" }));
}

function alone(last, hear) {
  // Closed while the page is hidden, so that it holds no connection; what was missed comes when it is seen again.
  let stop = null;
  const look = () => {
    if (document.hidden) {
      stop?.();
      stop = null;
    } else {
      stop ??= follow(last, (message) => { last = message.id ?? last; hear(message); });
    }
  };
  document.addEventListener("visibilitychange", look);
  addEventListener("pagehide", () => stop?.());
  look();
}

const TITLE = document.title;
let counting = null;

function countSoon() {
  counting ??= setTimeout(count, 200);
}

async function count() {
  // How many alerts wait for someone: on every page, in its title, and in the tab's icon.
  counting = null;
  try {
    const { alerts } = await (await ask("/api/v1/alerts?open=1")).json();
    const badge = document.getElementById("waiting");
    const drill = alerts.every((one) => one.exercise);
    const words = drill ? "exercise alert" : "alert";
    badge.classList.toggle("exercise", drill);
    document.title = alerts.length ? `(${alerts.length}) ${words[0].toUpperCase()}${words.slice(1)} · ${TITLE}` : TITLE;
    badge.hidden = !alerts.length;
    badge.replaceChildren(...(alerts.length ? [`${alerts.length} `, element("span", { class: "wide" }, "open "), `${words}${alerts.length === 1 ? "" : "s"}`] : []));
    const icon = document.querySelector("link[rel=icon]");
    icon.href = new URL(alerts.length ? "icon-alert.svg" : "icon.svg", import.meta.url);
  } catch { /* the desk does not answer; the page says so already */ }
}

function start() {
  const clock = document.getElementById("clock");
  if (clock) {
    skew = new Date(clock.dataset.now) - Date.now();
    if (Math.abs(skew) < 2000) skew = 0;
    if (Math.abs(skew) >= WRONG_MS) {
      const minutes = `${Math.round(Math.abs(skew) / 6000) / 10} min`;
      clock.before(element("span", { class: "link bad", role: "status" }, `this computer's clock is ${minutes} ${skew > 0 ? "behind" : "ahead of"} the desk's`));
    }
    const tick = () => {
      clock.textContent = `${timeText(new Date(Date.now() + skew)).slice(11)} ${local() ? "local" : "UTC"}`;
      for (const node of document.querySelectorAll("time[data-ago]")) if (node.dataset.ago) node.textContent = ago(node.dataset.ago);
    };
    clock.addEventListener("click", () => {
      localStorage.setItem(LOCAL, local() ? "0" : "1");
      showTimes();
      tick();
    });
    setInterval(tick, 1000);
    tick();
  }
  showTimes();
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-ack]");
    if (!button) return;
    button.disabled = true;
    try {
      await send(`/api/v1/alerts/${encodeURIComponent(button.dataset.ack)}/ack`, { revision: Number(button.dataset.revision) });
      button.replaceWith(element("p", { class: "acked" }, "Acknowledged"));
    } catch (error) {
      if (error.status === 409) {
        const again = element("button", { type: "button", onclick: () => location.reload() }, "Show it as it is now");
        button.replaceWith(element("p", { class: "banner bad", role: "alert" }, `Not acknowledged: ${error.message}. `, again));
        return;
      }
      button.disabled = false;
      button.textContent = `Not acknowledged: ${error.message}. Try again`;
    }
  });
  if (!document.querySelector("[data-last]")) listen(() => {}, null);
}

start();
