// A record drawn: each component with the trigger's times, STA/LTA, and the spectrogram that the desk computed.
import { ask, colour, element } from "./desk.js";

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

export function draw(place, found, { height = 130, spectrogram = true } = {}) {
  place.replaceChildren();
  const sync = uPlot.sync("record");
  const marks = found.marks ?? [];
  const width = place.clientWidth;
  const plots = [];
  for (const part of found.components) {
    const times = Float64Array.from(part.samples, (_, n) => part.start + n / part.rate);
    const values = Array.from(part.samples, (value) => (Number.isNaN(value) ? null : value));
    place.append(element("p", { class: "trace-title" }, `${part.name}, ${part.unit}`));
    plots.push(new uPlot({
      width, height,
      cursor: { sync: { key: sync.key, setSeries: false }, drag: { x: true, y: false } },
      scales: { x: { time: false } },
      legend: { show: false },
      axes: [axis("s after the onset"), { ...axis(""), size: 64 }],
      series: [{}, { stroke: colour("ink"), width: 1, points: { show: false }, spanGaps: false }],
      hooks: { draw: [(u) => lines(u, marks)] },
    }, [times, values], place));
  }
  if (spectrogram && found.spectrogram) {
    place.append(element("p", { class: "trace-title" }, `Spectrogram of ${found.spectrogram.component}, 0 to ${found.spectrogram.top_hz} Hz`));
    const image = new Image();
    image.alt = "Spectrogram";
    image.className = "spectrogram";
    image.src = `/api/v1/events/${encodeURIComponent(found.id)}/spectrogram.png`;
    place.append(image);
  }
  // Zooming one trace zooms all.
  let busy = false;
  for (const plot of plots) {
    plot.hooks.setScale = [...(plot.hooks.setScale ?? []), (u, key) => {
      if (busy || key !== "x") return;
      busy = true;
      for (const other of plots) if (other !== u) other.setScale("x", { min: u.scales.x.min, max: u.scales.x.max });
      busy = false;
    }];
  }
  addEventListener("resize", () => plots.forEach((plot) => plot.setSize({ width: place.clientWidth, height })));
  place.dataset.drawn = "1";
}

function axis(label) {
  return { stroke: colour("dim"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line") }, label, labelSize: label ? 18 : 0, font: "12px system-ui", labelFont: "12px system-ui" };
}

function lines(u, marks) {
  const { ctx } = u;
  ctx.save();
  for (const one of marks) {
    const x = Math.round(u.valToPos(one.at, "x", true)) + 0.5;
    if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
    ctx.strokeStyle = colour(one.colour);
    ctx.setLineDash(one.kind === "verdict" ? [4, 4] : []);
    ctx.beginPath();
    ctx.moveTo(x, u.bbox.top);
    ctx.lineTo(x, u.bbox.top + u.bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}
