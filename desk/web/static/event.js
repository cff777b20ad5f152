// The page of one event: its record, how the verdict grew, other sensors, its place in the day, and the answer.
import { callWords, CLASSES, colour, element, listen, send } from "./desk.js";
import { draw, record } from "./waveform.js";

const page = document.getElementById("event");
const id = page.dataset.id;
const place = document.getElementById("waveform");

async function show() {
  try {
    draw(place, await record(id));
  } catch (error) {
    place.replaceChildren(element("p", { class: "dim" }, `The record cannot be drawn: ${error.message}`));
    return;
  }
  for (const other of document.querySelectorAll("[data-neighbour]")) {
    try {
      draw(other, await record(other.dataset.neighbour), { height: 64, spectrogram: false, only: ["Z"], shift: Number(other.dataset.after), group: id });
      other.querySelector(".zoom")?.remove();
    } catch {
      other.replaceChildren(element("p", { class: "dim" }, "its record is not here"));
    }
  }
}

if (place.dataset.record === "here") show();

function surface(where, height) {
  const canvas = document.createElement("canvas");
  const scale = devicePixelRatio || 1;
  const width = where.clientWidth;
  [canvas.width, canvas.height] = [width * scale, height * scale];
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", where.getAttribute("aria-label") ?? "");
  where.replaceChildren(canvas);
  const c = canvas.getContext("2d");
  c.scale(scale, scale);
  c.font = "12px system-ui";
  return [c, width];
}

const grown = document.getElementById("grown");
if (grown) {
  // Probabilities as steps over the seconds that the network had seen; the axis is that of a square root, so that the
  // first seconds, which matter most, are not crowded.
  const verdicts = JSON.parse(grown.dataset.verdicts).filter((one) => one.probabilities && one.window_s !== null);
  if (verdicts.length) {
    const [high, left, right, top] = [110, 34, 8, 6];
    const [c, width] = surface(grown, high + 22);
    const last = Math.max(...verdicts.map((one) => one.window_s)) * 1.05;
    const x = (s) => left + Math.sqrt(s / last) * (width - left - right);
    const y = (p) => top + (1 - p) * (high - top);
    c.strokeStyle = colour("line");
    c.fillStyle = colour("dim");
    for (const p of [0, 0.5, 1]) {
      c.strokeRect(left, y(p), width - left - right, 0);
      c.fillText(`${p}`, 4, y(p) + 4);
    }
    let free = 0;
    for (const one of verdicts) {
      const words = `${+one.window_s.toPrecision(3)} s`;
      const from = Math.min(x(one.window_s) - 6, width - c.measureText(words).width - 2);
      if (from < free) continue;
      c.fillText(words, from, high + 16);
      free = from + c.measureText(words).width + 6;
    }
    for (const name of CLASSES.slice(0, 5)) {
      if (!verdicts.some((one) => one.probabilities[name] >= 0.02)) continue;
      c.strokeStyle = colour(name);
      c.lineWidth = 2.2;
      c.beginPath();
      verdicts.forEach((one, n) => {
        const from = x(one.window_s);
        const to = n + 1 < verdicts.length ? x(verdicts[n + 1].window_s) : width - right;
        if (n === 0) c.moveTo(from, y(one.probabilities[name]));
        else c.lineTo(from, y(one.probabilities[name]));
        c.lineTo(to, y(one.probabilities[name]));
      });
      c.stroke();
    }
  }
}

const strip = document.getElementById("around");
if (strip) {
  const events = JSON.parse(strip.dataset.events);
  const [c, width] = surface(strip, 46);
  c.fillStyle = colour("raised");
  c.fillRect(0, 0, width, 46);
  const here = new Date(page.dataset.onset);
  for (const one of [...events].reverse()) {
    const x = width / 2 + ((new Date(one.onset) - here) / 86_400_000) * (width / 2);
    c.fillStyle = colour(one.class);
    const high = Math.min(34, 10 + 6 * Math.log10(1 + (one.ratio ?? 1)));
    c.fillRect(x - 1, 40 - high, one.id === id ? 4 : 2, high);
  }
  c.fillStyle = colour("dim");
  c.fillText("−24 h", 2, 44);
  c.textAlign = "right";
  c.fillText("+24 h", width - 2, 44);
}

async function answer(label) {
  const sure = !document.getElementById("unsure")?.checked;
  const note = document.getElementById("note")?.value.trim() ?? "";
  // An answer is taken back by one without a label and a note; the note is then one of its own.
  if (label) await send("/api/v1/events/reviews", { events: [id], label, sure, note });
  else await send("/api/v1/events/reviews", { events: [id], label: null, sure, note: "" });
  if (note && !label) await leave(note);
  location.reload();
}

const leave = (note) => send("/api/v1/events/reviews", { events: [id], label: null, sure: true, note });

document.getElementById("note")?.addEventListener("keydown", (event) => {
  const note = event.target.value.trim();
  if (event.key === "Enter" && note) leave(note).then(() => location.reload()).catch(failed);
});

const said = document.getElementById("said");
const failed = (error) => { said.textContent = `Not saved: ${error.message}`; };

document.addEventListener("click", (event) => {
  const button = event.target.closest(".answer button[data-label]");
  if (button) answer(button.dataset.label).catch(failed);
});

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const label = CLASSES[Number(event.key) - 1];
  const answers = document.querySelector(".answer");
  if (/^[1-5]$/.test(event.key) && answers) answer(label).catch(failed);
  else if (event.key === "u" && answers) answer("").catch(failed);
  else if (event.key === "a") document.querySelector("button[data-ack]")?.click();
});

// What is new about this event is offered, not forced: nobody is to lose a note that they are writing.
listen((kind, subject, row) => {
  if (kind === "call") {
    const card = [...document.querySelectorAll("[data-alert]")].find((one) => one.dataset.alert === subject);
    card?.querySelector(".calls")?.replaceChildren(...row.calls.map(callWords));
    return;
  }
  const mine = subject === id || (kind === "alert" && subject.startsWith(id));
  if (!mine || kind === "ack" || kind === "review") return;
  const fresh = document.getElementById("fresh");
  if (kind === "evidence" && !document.getElementById("note")?.value) location.reload();
  else fresh.hidden = false;
}, page.dataset.last);
