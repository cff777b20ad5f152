// The page "now": stations, open alerts and events, kept up to date by the stream of changes.
import { element, eventRow, listen, may, timeText } from "./desk.js";

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
  const after = [...table.children].find((line) => line.dataset.onset <= row.onset);
  table.insertBefore(fresh, after ?? null);
  while (table.children.length > KEPT) table.lastElementChild.remove();
}

function showAlert(row) {
  const known = [...alerts.children].find((card) => card.dataset.alert === row.id);
  if (!row.open) known?.remove();
  else {
    const card = element("article", { class: `alert ${row.severity} ${row.exercise ? "exercise" : ""}`, data: { alert: row.id } },
      element("h3", {}, element("a", { href: `/event/${encodeURIComponent(row.event)}` }, `${row.action} ${row.severity}: ${row.label}`)),
      element("p", {}, `${row.sensor}, `, element("time", { data: { utc: row.onset } }, timeText(row.onset)), row.exercise ? element("b", {}, " EXERCISE") : null),
      element("p", { class: "reason" }, row.reason),
      may("operator") ? element("button", { class: "ack", data: { ack: row.id } }, "Acknowledge") : null);
    if (known) known.replaceWith(card);
    else alerts.prepend(card);
  }
  document.getElementById("open-count").textContent = alerts.children.length;
  document.getElementById("no-alerts").hidden = alerts.children.length > 0;
  document.title = alerts.children.length ? `(${alerts.children.length}) Alert · Talus desk` : "Now · Talus desk";
}

function showStation(row) {
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
  else if (kind === "alert" || kind === "ack") showAlert(row);
  else if (kind === "station") showStation(row);
}, document.getElementById("now").dataset.last);

// A station that falls silent sends nothing that could say so: the page looks for itself.
setInterval(async () => {
  const answer = await fetch("/api/v1/stations");
  if (answer.ok) for (const row of (await answer.json()).stations) showStation(row);
}, 30_000);
