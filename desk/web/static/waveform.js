// A record drawn: each component with the trigger's times, STA/LTA, and the spectrogram that the desk computed.
import { ask, colour, element } from "./desk.js";

const AXIS = 64;

export async function record(id) {
  // Four bytes: length of a JSON header; the header; then float32 samples, one component after the other.
  const raw = await (await ask(`/api/v1/events/${encodeURIComponent(id)}/waveform`)).arrayBuffer();
  const length = new DataView(raw).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(raw, 4, length)));
  let at = 4 + length + ((4 - (length % 4)) % 4);
  for (const part of header.components) {
    part.samples = new Float32Array(raw, at, part.n);
    at += 4 * part.n;
  }
  return header;
}

const shown = new Map();

export function draw(place, found, { height = 110, spectrogram = true, only = null, shift = 0, group = found.id } = {}) {
  // `only` names the components that are drawn; all without it. `shift`: seconds by which the times are those of another
  // event; `group`: whose cursor this one shares.
  const began = performance.now();
  shown.get(place)?.plots.forEach((plot) => plot.destroy());
  place.replaceChildren();
  const marks = (found.marks ?? []).filter((one) => !shift || one.kind !== "verdict").map((one) => ({ ...one, at: one.at + shift }));
  const parts = found.components.filter((part) => !only || only.includes(part.name));
  const first = parts[0];
  const range = { min: first.start + shift, max: first.start + shift + first.n / first.rate };
  const plots = [];
  let strip = null;
  let busy = false;

  const zoom = (min, max) => {
    const [a, b] = [Math.max(range.min, min), Math.min(range.max, max)];
    if (b - a < 0.2) return;
    busy = true;
    for (const plot of plots) plot.setScale("x", { min: a, max: b });
    busy = false;
    strip?.(a, b);
  };
  const about = (factor) => {
    const { min, max } = plots[0].scales.x;
    const middle = min < 0 && max > 0 && factor < 1 ? Math.min(max / 3, (min + max) / 2) : (min + max) / 2;
    zoom(middle - ((max - min) * factor) / 2, middle + ((max - min) * factor) / 2);
  };
  const button = (text, title, act) => element("button", { type: "button", title, onclick: act }, text);
  place.append(element("p", { class: "zoom" },
    button("all", "The whole record", () => zoom(range.min, range.max)),
    button("onset", "5 s before the onset to 25 s after it", () => zoom(-5, 25)),
    button("+", "Closer", () => about(0.5)),
    button("−", "Wider", () => about(2)),
    element("span", { class: "dim wide" }, "or drag over a trace; a double click shows all. Solid lines: onset and end; dashed: verdicts.")));

  parts.forEach((part, number) => {
    const last = number === parts.length - 1;
    const times = Float64Array.from({ length: part.n }, (_, n) => part.start + shift + n / part.rate);
    const values = Array.from(part.samples, (value) => (Number.isNaN(value) ? null : value));
    place.append(element("p", { class: "trace-title" }, `${part.name}, ${part.unit}`));
    const plot = new uPlot({
      width: place.clientWidth,
      height: (part.unit === "ratio" ? 0.7 : 1) * height + (last ? 42 : 0),
      padding: [9, 8, 0, 0],
      cursor: { sync: { key: group, setSeries: false }, drag: { x: true, y: false } },
      scales: { x: { time: false } },
      legend: { show: false },
      axes: [{ ...axis(last ? "seconds after the onset" : ""), ...(last ? { size: 30 } : { size: 4, values: (u, splits) => splits.map(() => "") }) },
        { ...axis(""), size: AXIS, space: 22, values: (u, splits) => splits.map(short) }],
      series: [{}, { stroke: colour("ink"), width: 1, points: { show: false }, spanGaps: false }],
      hooks: {
        draw: [(u) => lines(u, marks)],
        setScale: [(u, key) => { if (key === "x" && !busy && plots.includes(u)) zoom(u.scales.x.min, u.scales.x.max); }],
      },
    }, [times, values], place);
    plots.push(plot);
  });
  if (spectrogram && found.spectrogram) strip = image(place, found, plots[0], range);
  shown.set(place, { plots, resize: () => { plots.forEach((plot) => plot.setSize({ width: place.clientWidth, height: plot.height })); strip?.(); } });
  place.dataset.drawn = "1";
  place.dataset.drawMs = (performance.now() - began).toFixed(1);
}

addEventListener("resize", () => shown.forEach((one) => one.resize()));

function image(place, found, plot, range) {
  // The part of the desk's image that is in sight, under the traces; the rows are those of the image.
  place.append(element("p", { class: "trace-title" }, `Spectrogram of ${found.spectrogram.component}, 0 to ${found.spectrogram.top_hz} Hz, 45 dB from dark to light`));
  const canvas = element("canvas", { class: "spectrogram" });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Spectrogram");
  place.append(canvas);
  const picture = new Image();
  const paint = (min = plot.scales.x.min, max = plot.scales.x.max) => {
    const scale = devicePixelRatio || 1;
    const [left, wide, high] = [plot.bbox.left / scale, plot.bbox.width / scale, 110];
    [canvas.width, canvas.height] = [place.clientWidth * scale, high * scale];
    const c = canvas.getContext("2d");
    c.scale(scale, scale);
    if (picture.complete && picture.naturalWidth) {
      const share = (t) => ((t - range.min) / (range.max - range.min)) * picture.naturalWidth;
      c.drawImage(picture, share(min), 0, Math.max(1, share(max) - share(min)), picture.naturalHeight, left, 0, wide, high);
      place.dataset.spectrogram = "1";
    }
    c.fillStyle = colour("dim");
    c.font = "12px system-ui";
    c.textAlign = "right";
    const top = found.spectrogram.top_hz;
    const step = [1, 2, 5, 10, 20, 50, 100].find((one) => (high * one) / top >= 18) ?? 200;
    for (let hz = 0; hz <= top; hz += step) {
      const y = high * (1 - hz / top);
      c.fillText(`${hz} Hz`, left - 8, Math.min(high - 2, Math.max(10, y + 4)));
      c.fillRect(left - 5, Math.min(high - 1, y), 5, 1);
    }
  };
  picture.onload = () => paint();
  picture.src = `/api/v1/events/${encodeURIComponent(found.id)}/spectrogram.png`;
  return paint;
}

function short(value) {
  const size = Math.abs(value);
  return size >= 1e6 ? `${+(value / 1e6).toPrecision(3)}M` : size >= 1e4 ? `${+(value / 1e3).toPrecision(3)}k` : `${+value.toPrecision(4)}`;
}

function axis(label) {
  return { stroke: colour("dim"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line") }, label: label || undefined, labelSize: label ? 16 : 0, font: "12px system-ui", labelFont: "12px system-ui" };
}

function lines(u, marks) {
  const { ctx } = u;
  ctx.save();
  for (const one of marks) {
    const x = Math.round(u.valToPos(one.at, "x", true)) + 0.5;
    if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
    ctx.strokeStyle = colour(one.colour);
    ctx.lineWidth = (one.kind === "verdict" ? 1 : 2) * (devicePixelRatio || 1);
    ctx.setLineDash(one.kind === "verdict" ? [4, 4] : []);
    ctx.beginPath();
    ctx.moveTo(x, u.bbox.top);
    ctx.lineTo(x, u.bbox.top + u.bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}
