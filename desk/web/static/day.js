// A day as a drum: 24 lines of an hour, the smallest and largest sample of each second, and every event in the colour of
// its class. What was not recorded stays empty.
import { ask, CLASSES, colour, element } from "./desk.js";

const place = document.getElementById("drum");
const note = document.getElementById("drum-note");
const events = JSON.parse(place.dataset.events);
const begin = Date.parse(`${place.dataset.date}T00:00:00Z`);
const [line, left, right, top] = [26, 46, 6, 16];
let gain = 1;

const name = (one) => (CLASSES.includes(one.class) ? one.class : "unclassified");

function spans(from, seconds) {
  // Parts of a stretch of time by the line that they are on: hour, first and last second.
  const found = [];
  for (let at = Math.max(0, from); at < Math.min(86400, from + seconds);) {
    const end = Math.min(from + seconds, (Math.floor(at / 3600) + 1) * 3600, 86400);
    found.push([Math.floor(at / 3600), at % 3600, end - Math.floor(at / 3600) * 3600]);
    at = end;
  }
  return found;
}

function draw(drum) {
  const scale = devicePixelRatio || 1;
  const width = place.clientWidth;
  const canvas = element("canvas", {});
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Drum plot of ${place.dataset.station}, ${place.dataset.date}`);
  [canvas.width, canvas.height] = [width * scale, (24 * line + top + 4) * scale];
  const c = canvas.getContext("2d");
  c.scale(scale, scale);
  c.font = "12px system-ui";
  const x = (second) => left + (second / 3600) * (width - left - right);
  const y = (hour) => top + hour * line + line / 2;
  c.fillStyle = colour("dim");
  for (let hour = 0; hour < 24; hour++) c.fillText(`${String(hour).padStart(2, "0")}:00`, 2, y(hour) + 4);
  c.fillText("UTC", 2, 10);
  c.textAlign = "center";
  for (let minute = width < 600 ? 20 : 10; minute < 60; minute += width < 600 ? 20 : 10) c.fillText(`+${minute} min`, x(minute * 60), 10);
  c.textAlign = "left";

  const spots = [];
  const tone = new Uint8Array(86400).fill(255);
  for (const one of [...events].reverse()) {
    const from = (Date.parse(one.onset) - begin) / 1000;
    const length = one.duration_s ?? 1;
    tone.fill(CLASSES.indexOf(name(one)), Math.max(0, Math.floor(from)), Math.max(0, Math.ceil(from + length)));
    for (const [hour, first, last] of spans(from, length)) {
      const [at, wide] = [x(first), Math.max(3, x(last) - x(first))];
      c.globalAlpha = 0.22;
      c.fillStyle = colour(name(one));
      c.fillRect(at, y(hour) - line / 2 + 1, wide, line - 2);
      c.globalAlpha = 1;
      c.fillRect(at, y(hour) + line / 2 - 4, wide, 3);
      if (one.alert) {
        c.strokeStyle = colour("bad");
        c.lineWidth = 2;
        c.strokeRect(at - 1, y(hour) - line / 2 + 1, wide + 2, line - 2);
      }
      spots.push([at, y(hour) - line / 2, wide, one]);
    }
  }

  if (drum) {
    const full = drum.scale / gain;
    const colours = [...CLASSES.map(colour)];
    const paths = new Map();
    const clip = (v) => Math.max(-1.6, Math.min(1.6, v / full)) * (line / 2);
    for (const part of drum.parts) {
      for (let n = 0; n < part.low.length; n++) {
        const second = part.second + n * drum.step_s;
        const kind = tone[second];
        if (!paths.has(kind)) paths.set(kind, new Path2D());
        const [at, middle] = [x((second % 3600) + drum.step_s / 2), y(Math.floor(second / 3600))];
        paths.get(kind).moveTo(at, middle - clip(part.high[n]) - 0.3);
        paths.get(kind).lineTo(at, middle - clip(part.low[n]) + 0.3);
      }
    }
    c.lineWidth = Math.max(1, (x(drum.step_s) - left) * 1.05);
    for (const [kind, path] of paths) {
      c.strokeStyle = kind === 255 ? colour("ink") : colours[kind];
      c.stroke(path);
    }
  }

  const hit = (event) => spots.findLast(([at, from, wide]) =>
    event.offsetX >= at - 6 && event.offsetX <= at + wide + 6 && event.offsetY >= from && event.offsetY < from + line);
  canvas.addEventListener("click", (event) => {
    const found = hit(event);
    if (found) location.href = `/event/${encodeURIComponent(found[3].id)}`;
  });
  canvas.addEventListener("mousemove", (event) => {
    const found = hit(event);
    canvas.title = found ? `${found[3].onset.slice(11, 19)} UTC ${found[3].class} ${found[3].sensor}` : "";
    canvas.classList.toggle("over", Boolean(found));
  });
  place.replaceChildren(canvas);
  place.dataset.drawn = "1";
  place.dataset.source = drum?.source ?? "none";
}

const WORDS = {
  envelope: (drum) => `${drum.sensor}.${drum.component}, each second's smallest and largest sample as the station sends them (envelope).`,
  records: (drum) => `${drum.sensor}.${drum.component}, from the records of events: between them nothing was sent, and the lines stay empty.`,
  none: () => ["No samples of this day are here. The station sends them if its file has ", element("code", {}, "envelope: {component: Z}"), "; events are drawn all the same."],
};

let drum = null;
if (place.dataset.station) {
  const step = Math.max(1, Math.min(60, Math.floor(3600 / Math.max(60, place.clientWidth - left - right))));
  try {
    drum = await (await ask(`/api/v1/drum/${encodeURIComponent(place.dataset.station)}/${place.dataset.date}?step=${step}`)).json();
    note.replaceChildren(...[WORDS[drum.source](drum)].flat());
    if (drum.source !== "none") {
      const size = element("span", { class: "number" });
      const show = () => { size.textContent = ` From the middle of a line to its edge: ${Number((drum.scale / gain).toPrecision(2)).toLocaleString("en")} counts. `; };
      const button = (text, by) => element("button", { type: "button", onclick: () => { gain *= by; show(); draw(drum); } }, text);
      show();
      note.append(size, button("larger", 2), " ", button("smaller", 0.5));
    }
  } catch (error) {
    note.textContent = `The samples cannot be shown: ${error.message}`;
  }
}
draw(drum);
let wide = place.clientWidth;
addEventListener("resize", () => {
  if (place.clientWidth !== wide) draw(drum);
  wide = place.clientWidth;
});
