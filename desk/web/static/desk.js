// What every page does: the clock, UTC or local times, acknowledging, and the stream of changes.

export const CLASSES = ["earthquake", "blast", "collapse", "landslide", "noise", "undecided", "unclassified", "slow"];
const LOCAL = "talus-local-time";
const LOST_MS = 6000;
const AGAIN_MS = 4000;

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim() || "#888";
}

export function csrf() {
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
      row.alert ? element("span", { class: "alert-word" }, row.alert_words) : null,
      row.exercise ? element("span", { class: "exercise-word" }, " exercise") : null,
      row.imported ? element("span", { class: "dim" }, " imported") : null),
  ];
  return element("tr", { class: row.exercise ? "exercise" : "", data: { id: row.id, onset: row.onset } }, ...cells);
}

let skew = 0;

export function listen(change, last) {
  // The browser connects again by itself and sends Last-Event-ID; the desk then tells what was missed. Where it gives up,
  // as when a proxy answers for a desk that starts anew, the page goes on.
  const link = document.getElementById("link");
  const say = (text, bad) => { link.textContent = text; link.className = bad ? "link bad" : "link"; };
  let source = null;
  let lost = null;
  const open = () => {
    source = new EventSource(`/api/v1/stream${last ? `?last=${encodeURIComponent(last)}` : ""}`);
    source.onopen = () => {
      clearTimeout(lost);
      lost = null;
      say("live", false);
    };
    source.onerror = () => {
      lost ??= setTimeout(() => say("no connection to the desk", true), LOST_MS);
      if (source.readyState !== EventSource.CLOSED) return;
      setTimeout(open, AGAIN_MS);
      ask("/api/v1/stations").catch(() => {}); // leads to the login where the session has ended
    };
    source.addEventListener("reload", () => location.reload());
    source.addEventListener("change", (event) => {
      last = event.lastEventId || last;
      const found = JSON.parse(event.data);
      change(found.kind, found.subject, found.row);
    });
  };
  open();
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}

function start() {
  const clock = document.getElementById("clock");
  if (clock) {
    skew = new Date(clock.dataset.now) - Date.now();
    if (Math.abs(skew) < 2000) skew = 0;
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
  if (!document.getElementById("now") && !document.getElementById("event")) listen(() => {}, null);
}

start();
