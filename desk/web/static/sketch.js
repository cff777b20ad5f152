// Where the stations are: a sketch to scale, on a map's tiles where an address of tiles is configured.
import { colour, element } from "./desk.js";

const TILE = 256;
const HIGH = 220;
const NAMED = 25; // of more stations, only those with a problem or an alert are named
const STATUS = { ok: "ok", degraded: "bad", silent: "bad", offline: "bad", failed: "bad" };

function world([latitude, longitude]) {
  // Web Mercator, the whole world one unit wide.
  const s = Math.sin((Math.max(-85, Math.min(85, latitude)) * Math.PI) / 180);
  return [longitude / 360 + 0.5, 0.5 - Math.log((1 + s) / (1 - s)) / (4 * Math.PI)];
}

function bar(metres) {
  const power = 10 ** Math.floor(Math.log10(metres));
  return [5, 2, 1].map((n) => n * power).find((n) => n <= metres) ?? power;
}

export function sketch(place, stations, alerting) {
  // `alerting`: codes of the stations that have an open alert.
  if (!stations.length) return;
  const width = place.clientWidth;
  const scale = devicePixelRatio || 1;
  const spots = stations.map((one) => [one, world(one.position)]);
  const xs = spots.map(([, [x]]) => x);
  const ys = spots.map(([, [, y]]) => y);
  const middle = [(Math.min(...xs) + Math.max(...xs)) / 2, (Math.min(...ys) + Math.max(...ys)) / 2];
  const metre = 1 / (40_075_016 * Math.cos((stations[0].position[0] * Math.PI) / 180));
  const span = Math.max((Math.max(...xs) - Math.min(...xs)) / (width - 110), (Math.max(...ys) - Math.min(...ys)) / (HIGH - 80), (400 * metre) / width);
  let unit = 1 / span;
  const tiles = place.dataset.tiles;
  let zoom = 0;
  if (tiles) {
    zoom = Math.max(0, Math.min(17, Math.floor(Math.log2(unit / TILE))));
    unit = TILE * 2 ** zoom;
  }
  const at = ([x, y]) => [(x - middle[0]) * unit + width / 2, (y - middle[1]) * unit + HIGH / 2];

  const canvas = element("canvas", {});
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", stations.map((one) => `${one.code} ${one.status}`).join(", "));
  [canvas.width, canvas.height] = [width * scale, HIGH * scale];
  canvas.style.height = `${HIGH}px`;
  const c = canvas.getContext("2d");
  const paint = (pictures) => {
    c.setTransform(scale, 0, 0, scale, 0, 0);
    c.fillStyle = colour("raised");
    c.fillRect(0, 0, width, HIGH);
    for (const [picture, x, y] of pictures) c.drawImage(picture, x, y, TILE, TILE);
    c.font = "12px system-ui";
    for (const [one, spot] of spots) {
      const [x, y] = at(spot);
      c.fillStyle = colour(STATUS[one.status] ?? "warn");
      c.strokeStyle = colour("paper");
      c.lineWidth = 1.5;
      c.beginPath();
      c.moveTo(x, y - 8);
      c.lineTo(x + 7, y + 5);
      c.lineTo(x - 7, y + 5);
      c.closePath();
      c.fill();
      c.stroke();
      if (alerting.has(one.code)) {
        c.strokeStyle = colour("bad");
        c.lineWidth = 3;
        c.beginPath();
        c.arc(x, y, 14, 0, 7);
        c.stroke();
      }
      c.lineWidth = 3;
      c.strokeStyle = colour("paper");
      c.fillStyle = colour("ink");
      if (spots.length > NAMED && one.status === "ok" && !alerting.has(one.code)) continue;
      const words = one.position[2] === null ? one.code : `${one.code}, ${Math.round(one.position[2])} m`;
      const left = x + 18 + c.measureText(words).width > width ? x - 18 - c.measureText(words).width : x + 18;
      c.strokeText(words, left, y + 4);
      c.fillText(words, left, y + 4);
    }
    const length = bar((width / 3 / unit) / metre);
    const wide = length * metre * unit;
    c.fillStyle = colour("ink");
    c.fillRect(10, HIGH - 12, wide, 3);
    c.fillText(length >= 1000 ? `${length / 1000} km` : `${length} m`, 14 + wide, HIGH - 8);
    c.fillText("N ↑", width - 30, 16);
    if (tiles) c.fillText(`map: ${new URL(tiles.replace(/[{}]/g, "")).hostname}`, 10, 16);
  };
  paint([]);
  place.replaceChildren(canvas);
  place.dataset.drawn = "1";
  if (!tiles) return;
  const pictures = [];
  const [left, top] = [middle[0] * unit - width / 2, middle[1] * unit - HIGH / 2];
  for (let x = Math.floor(left / TILE); x * TILE < left + width; x++) {
    for (let y = Math.floor(top / TILE); y * TILE < top + HIGH; y++) {
      if (y < 0 || y >= 2 ** zoom) continue;
      const picture = new Image();
      picture.referrerPolicy = "no-referrer";
      picture.onload = () => { pictures.push([picture, x * TILE - left, y * TILE - top]); paint(pictures); };
      picture.src = tiles.replace("{z}", zoom).replace("{x}", ((x % 2 ** zoom) + 2 ** zoom) % 2 ** zoom).replace("{y}", y);
    }
  }
}
