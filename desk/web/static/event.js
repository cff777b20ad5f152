// The page of one event: its record, its place in the day, and the answer of who looks at it.
import { CLASSES, colour, send } from "./desk.js";
import { draw, record } from "./waveform.js";

const page = document.getElementById("event");
const id = page.dataset.id;
const place = document.getElementById("waveform");

if (place.textContent.includes("Loading")) {
  record(id).then((found) => draw(place, found), (error) => { place.textContent = `The record cannot be drawn: ${error.message}`; });
}

const strip = document.getElementById("around");
if (strip) {
  const events = JSON.parse(strip.dataset.events);
  const canvas = document.createElement("canvas");
  const scale = devicePixelRatio || 1;
  const width = strip.clientWidth;
  [canvas.width, canvas.height] = [width * scale, 46 * scale];
  strip.append(canvas);
  const c = canvas.getContext("2d");
  c.scale(scale, scale);
  c.fillStyle = colour("raised");
  c.fillRect(0, 0, width, 46);
  const here = new Date(page.dataset.onset);
  for (const one of events) {
    const x = width / 2 + ((new Date(one.onset) - here) / 86_400_000) * (width / 2);
    c.fillStyle = colour(one.class);
    const high = 10 + 6 * Math.log10(1 + (one.ratio ?? 1));
    c.fillRect(x - 1, 40 - high, one.id === id ? 4 : 2, high);
  }
  c.fillStyle = colour("dim");
  c.font = "11px system-ui";
  c.fillText("−24 h", 2, 44);
  c.fillText("+24 h", width - 34, 44);
}

async function answer(label) {
  const sure = !document.getElementById("unsure")?.checked;
  const note = document.getElementById("note")?.value ?? "";
  await send("/api/v1/events/reviews", { events: [id], label: label || null, sure, note });
  location.reload();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest(".answer button[data-label]");
  if (button) answer(button.dataset.label).catch((error) => alert(error.message));
});

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const label = CLASSES[Number(event.key) - 1];
  if (/^[1-5]$/.test(event.key)) answer(label).catch((error) => alert(error.message));
  else if (event.key === "u") answer("").catch((error) => alert(error.message));
  else if (event.key === "a") document.querySelector("button[data-ack]")?.click();
});
