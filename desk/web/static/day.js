// A day as a drum: 24 lines of an hour, the envelope where there is one, and every event in the colour of its class.
import { CLASSES, colour, element } from "./desk.js";

const place = document.getElementById("drum");
const events = JSON.parse(place.dataset.events);
const begin = Date.parse(`${place.dataset.date}T00:00:00Z`);
const [line, left] = [26, 46];

function draw(envelope) {
  const scale = devicePixelRatio || 1;
  const width = place.clientWidth;
  const canvas = element("canvas", {});
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Drum plot of ${place.dataset.station}, ${place.dataset.date}`);
  [canvas.width, canvas.height] = [width * scale, (24 * line + 20) * scale];
  const c = canvas.getContext("2d");
  c.scale(scale, scale);
  c.font = "12px system-ui";
  const x = (second) => left + (second / 3600) * (width - left - 6);
  for (let hour = 0; hour < 24; hour++) {
    const y = 12 + hour * line + line / 2;
    c.fillStyle = colour("dim");
    c.fillText(`${String(hour).padStart(2, "0")}:00`, 2, y + 4);
    c.strokeStyle = colour("line");
    c.beginPath();
    c.moveTo(left, y);
    c.lineTo(width - 6, y);
    c.stroke();
  }
  if (envelope) {
    const top = envelope.scale || 1;
    c.strokeStyle = colour("ink");
    c.lineWidth = 1;
    for (const part of envelope.parts) {
      part.low.forEach((low, n) => {
        const second = part.second + n;
        const y = 12 + Math.floor(second / 3600) * line + line / 2;
        const at = x(second % 3600);
        const clip = (v) => Math.max(-1.6, Math.min(1.6, v / top));
        c.beginPath();
        c.moveTo(at, y - clip(part.high[n]) * (line / 2));
        c.lineTo(at, y - clip(low) * (line / 2) + 0.6);
        c.stroke();
      });
    }
  }
  const spots = [];
  for (const one of events) {
    const second = (Date.parse(one.onset) - begin) / 1000;
    const hour = Math.floor(second / 3600);
    const y = 12 + hour * line;
    c.fillStyle = colour(CLASSES.includes(one.class) ? one.class : "unclassified");
    c.globalAlpha = 0.85;
    const [at, wide] = [x(second % 3600), Math.max(3, x(one.duration_s ?? 1) - left)];
    c.fillRect(at, y + 3, wide, line - 6);
    c.globalAlpha = 1;
    if (one.alert) {
      c.strokeStyle = colour("bad");
      c.lineWidth = 2;
      c.strokeRect(at - 1, y + 2, wide + 2, line - 4);
    }
    spots.push([at, y, wide, one]);
  }
  canvas.addEventListener("click", (event) => {
    const hit = spots.find(([at, y, wide]) => event.offsetX >= at - 3 && event.offsetX <= at + wide + 3 && event.offsetY >= y && event.offsetY < y + line);
    if (hit) location.href = `/event/${encodeURIComponent(hit[3].id)}`;
  });
  canvas.addEventListener("mousemove", (event) => {
    const hit = spots.find(([at, y, wide]) => event.offsetX >= at - 3 && event.offsetX <= at + wide + 3 && event.offsetY >= y && event.offsetY < y + line);
    canvas.title = hit ? `${hit[3].onset.slice(11, 19)} ${hit[3].class} ${hit[3].sensor}` : "";
  });
  place.replaceChildren(canvas);
  place.dataset.drawn = "1";
}

const answer = place.dataset.station ? await fetch(`/api/v1/drum/${encodeURIComponent(place.dataset.station)}/${place.dataset.date}`) : null;
draw(answer?.ok ? await answer.json() : null);
