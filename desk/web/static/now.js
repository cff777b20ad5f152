// The page "now": stations, open alerts and events, kept up to date by the stream of changes.
import { ask, callWords, element, eventRow, holdStill, listen, may, timeText, zone } from "./desk.js";
import { sketch } from "./sketch.js";

const KEPT = 60;
const table = document.getElementById("events");
const alerts = document.getElementById("alerts");
const stations = document.getElementById("stations");

function showEvent(row) {
  const fresh = eventRow(row);
  const known = [...table.children].find((line) => line.dataset.id === row.id);
  if (known) {
    known.replaceWith(fresh);
    return;
  }
  fresh.classList.add("fresh");
  document.getElementById("no-events").hidden = true;
  const after = [...table.children].find((line) => line.dataset.onset <= row.onset);
  table.insertBefore(fresh, after ?? null);
  while (table.children.length > KEPT) table.lastElementChild.remove();
}

function comesBefore(one, other) {
  // The gravest first, then the newest; as the desk orders them.
  return one.rank === other.rank ? one.raised >= other.raised : Number(one.rank) > Number(other.rank);
}

function showAlert(row) {
  const known = [...alerts.children].find((card) => card.dataset.alert === row.id);
  if (!row.open) {
    known?.remove();
    const words = row.acked_by ? `Acknowledged by ${row.acked_by} after ${row.waited}` : "Retracted";
    document.getElementById("told").textContent = `${words}: ${row.label}, ${row.sensor}.`;
  }
  else {
    const card = element("article", { class: `alert ${row.severity} ${row.exercise ? "exercise" : ""}`, data: { alert: row.id, rank: row.rank, raised: row.raised, place: row.sensor.split(".").slice(0, 2).join(".") } },
      element("h3", {}, element("a", { href: `/event/${encodeURIComponent(row.event)}` }, `${row.words} · ${row.label}`)),
      element("p", {}, `${row.sensor}, `, element("time", { data: { utc: row.onset } }, timeText(row.onset)), " ", element("span", { class: "tz" }, zone()), row.exercise ? element("b", {}, " EXERCISE") : null, " ", element("time", { class: "ago", data: { ago: row.onset } })),
      element("p", { class: "reason" }, row.reason),
      row.calls.length ? element("p", { class: "calls" }, ...row.calls.map(callWords)) : null,
      may("operator") ? element("button", { class: "ack", ariaLabel: `Acknowledge ${row.words} ${row.label}, ${row.sensor}`, data: { ack: row.id, revision: row.revision } }, "Acknowledge") : null);
    const held = known?.contains(document.activeElement);
    known?.remove();
    alerts.insertBefore(card, [...alerts.children].find((other) => comesBefore(card.dataset, other.dataset)) ?? null);
    if (held) card.querySelector("button.ack")?.focus();
  }
  holdStill(alerts);
  showMap();
  document.getElementById("open-count").textContent = alerts.children.length;
  document.getElementById("no-alerts").hidden = alerts.children.length > 0;
}

const map = document.getElementById("sketch");
const known = new Map((map ? JSON.parse(map.dataset.stations) : []).map((one) => [one.code, one]));

function showMap() {
  const open = new Set([...alerts.children].map((card) => card.dataset.place));
  if (map) sketch(map, [...known.values()], open);
}

const filter = document.getElementById("station-filter");

function countStations() {
  // How many there are of which status; of many, those with a problem alone are shown unless asked for.
  const cards = [...stations.children];
  const counts = new Map();
  for (const card of cards) {
    const status = card.querySelector(".status").textContent;
    counts.set(status, (counts.get(status) ?? 0) + 1);
  }
  const words = [...counts].sort((a, b) => (a[0] === "ok") - (b[0] === "ok") || b[1] - a[1]).map(([status, n]) => `${n} ${status}`);
  document.getElementById("station-count").textContent = words.join(", ");
  const fine = counts.get("ok") ?? 0;
  filter.hidden = cards.length <= Number(stations.dataset.many) || !fine;
  filter.textContent = stations.classList.contains("few") ? `Show the ${fine} that are ok, too` : "Show those with a problem only";
}

filter.addEventListener("click", () => { stations.classList.toggle("few"); countStations(); });

function showStation(row) {
  if (known.has(row.code) && known.get(row.code).status !== row.status) {
    known.get(row.code).status = row.status;
    showMap();
  }
  const card = [...stations.children].find((one) => one.dataset.station === row.code);
  if (!card) {
    location.reload();
    return;
  }
  card.className = `station ${row.status}`;
  card.querySelector(".status").textContent = row.status;
  card.querySelector(".heard time").dataset.ago = row.heard;
  card.querySelector(".reasons").replaceChildren(...row.reasons.map((text) => element("li", {}, text)));
  const total = row.streams_total;
  card.querySelector(".channels").textContent = total ? `${total - (row.streams_stalled ?? 0)}/${total}` : "–";
  card.querySelector(".hearing").textContent = row.hearing_words ?? "–";
  card.querySelector(".waiting").textContent = row.outbox ? row.outbox.depth : "–";
}

listen((kind, subject, row) => {
  if (!row) return;
  if (kind === "event" || kind === "review") showEvent(row);
  else if (kind === "alert" || kind === "ack" || kind === "call") showAlert(row);
  else if (kind === "station") { showStation(row); countStations(); }
}, document.getElementById("now").dataset.last);

// A station that falls silent sends nothing that could say so: the page looks for itself.
setInterval(async () => {
  if (document.hidden) return;
  try {
    for (const row of (await (await ask("/api/v1/stations")).json()).stations) showStation(row);
    countStations();
  } catch { /* the desk does not answer; the page says so already */ }
}, 30_000);

showMap();
countStations();
addEventListener("resize", showMap);
