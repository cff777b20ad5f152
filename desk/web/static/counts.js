// Events per bin and class, cumulated, and the inverse rate of landslides; hours not heard are grey.
import { ask, CLASSES, colour, element, mark } from "./desk.js";

const place = document.getElementById("counts");
const given = new URLSearchParams(location.search);
const query = new URLSearchParams({ from: place.dataset.from, to: place.dataset.to });
const tick = document.getElementById("with-exercises");
tick.addEventListener("change", () => { tick.form.exercise.value = tick.checked ? "1" : "0"; tick.form.submit(); });
query.set("exercise", tick.checked ? "1" : "0");
if (given.get("hours")) query.set("hours", given.get("hours"));
const sensor = document.querySelector("select[name=sensor]").value;
if (sensor) {
  query.set("sensor", sensor);
  query.set("station", sensor.split(".").slice(0, 2).join("."));
}

const found = await ask(`/api/v1/counts?${query}`).then((answer) => answer.json()).catch((error) => {
  place.replaceChildren(element("p", { class: "banner bad", role: "alert" }, `Nothing can be drawn: ${error.message}`));
  throw error;
});
const from = Math.floor(new Date(found.from) / 3.6e6);
const to = Math.ceil(new Date(found.to) / 3.6e6);
const heard = new Map(found.heard);
const bins = new Map();
for (const [bin, name, n] of found.counts) bins.set(bin, { ...(bins.get(bin) ?? {}), [name]: n });

const canvas = document.createElement("canvas");
const scale = devicePixelRatio || 1;
const width = place.clientWidth;
const [high, gap, left, right] = [150, 34, 46, 8];
[canvas.width, canvas.height] = [width * scale, (3 * (high + gap) + 10) * scale];
canvas.setAttribute("role", "img");
canvas.setAttribute("aria-label", "Events per bin, cumulated, and inverse rate");
place.append(canvas);
const c = canvas.getContext("2d");
c.scale(scale, scale);
c.font = "12px system-ui";
const x = (hour) => left + ((hour - from) / (to - from)) * (width - left - right);

function frame(row, title, top) {
  const y0 = row * (high + gap) + 18;
  c.fillStyle = colour("paper");
  c.fillRect(left, y0, width - left - right, high);
  c.fillStyle = colour("line");
  for (let hour = from; hour < to; hour++) {
    if ((heard.get(hour) ?? 0) < 0.9) c.fillRect(x(hour), y0, Math.max(1, x(hour + 1) - x(hour)), high);
  }
  c.strokeStyle = colour("dim");
  c.lineWidth = 1;
  c.strokeRect(left, y0, width - left - right, high);
  c.fillStyle = colour("ink");
  c.fillText(title, left, y0 - 5);
  c.fillStyle = colour("dim");
  c.textAlign = "right";
  c.fillText(top, left - 5, y0 + 11);
  c.fillText("0", left - 5, y0 + high);
  c.textAlign = "left";
  return y0;
}

const totals = [...bins.values()].map((one) => Object.values(one).reduce((a, b) => a + b, 0));
const most = Math.max(1, ...totals);
let y0 = frame(0, `Events per ${found.hours === 1 ? "hour" : `${found.hours} hours`}, UTC`, most);
const end = new Date(found.to) / 3.6e6;
const unfinished = (bin) => bin + found.hours > end; // its rate is not known yet
for (const [bin, one] of bins) {
  let y = y0 + high;
  c.globalAlpha = unfinished(bin) ? 0.45 : 1;
  for (const name of CLASSES) {
    const h = ((one[name] ?? 0) / most) * high;
    c.fillStyle = colour(name);
    c.fillRect(x(bin), y - h, Math.max(1, x(bin + found.hours) - x(bin) - 0.5), h);
    y -= h;
  }
}

c.globalAlpha = 1;
const sums = Object.fromEntries(CLASSES.map((name) => [name, found.counts.filter((one) => one[1] === name).reduce((a, one) => a + one[2], 0)]));
const largest = Math.max(1, ...Object.values(sums));
y0 = frame(1, "Cumulated, by class", largest);
for (const name of CLASSES.filter((one) => sums[one])) {
  let sum = 0;
  c.strokeStyle = colour(name);
  c.lineWidth = 1.8;
  c.beginPath();
  c.moveTo(x(from), y0 + high);
  for (const [bin, one] of [...bins].sort((a, b) => a[0] - b[0])) {
    if (!one[name]) continue;
    c.lineTo(x(bin), y0 + high - (sum / largest) * high);
    sum += one[name];
    c.lineTo(x(bin), y0 + high - (sum / largest) * high);
  }
  c.lineTo(x(to), y0 + high - (sum / largest) * high);
  c.stroke();
}

const slides = [...bins].filter(([, one]) => one.landslide).map(([bin, one]) => [bin, found.hours / one.landslide]).sort((a, b) => a[0] - b[0]);
const longest = Math.max(1, ...slides.map((one) => one[1]));
y0 = frame(2, "Inverse rate of landslides, hours per event", longest.toFixed(1));
c.fillStyle = c.strokeStyle = colour("landslide");
for (const [bin, value] of slides) {
  c.beginPath();
  c.arc(x(bin + found.hours / 2), y0 + high - (value / longest) * high, 3, 0, 7);
  if (unfinished(bin)) c.stroke();
  else c.fill();
}
c.fillStyle = colour("dim");
const least = (to - from) / Math.max(2, Math.floor(width / 110));
const step = [1, 2, 3, 6, 12].find((one) => one >= least) ?? Math.ceil(least / 24) * 24;
for (let hour = Math.ceil(from / step) * step; hour < to; hour += step) {
  const text = new Date(hour * 3.6e6).toISOString();
  c.fillText(step < 24 ? `${text.slice(11, 16)}${hour % 24 ? "" : ` ${text.slice(5, 10)}`}` : text.slice(5, 10), x(hour), y0 + high + 14);
  c.fillRect(x(hour), y0 + high, 1, 4);
}
document.getElementById("legend").append(...CLASSES.filter((one) => sums[one]).map((one) => element("span", {}, mark(one), `${sums[one]}`)));
place.dataset.drawn = "1";
