// The queue: one key an answer, many events at once, and a way back.
import { CLASSES, element, mark, may, send } from "./desk.js";
import { draw, record } from "./waveform.js";

const body = document.querySelector("#queue tbody");
const place = document.getElementById("waveform");
const done = [];
let at = 0;
let shown = 0;

const rows = () => [...body.querySelectorAll("tr[data-id]")];

function show() {
  const all = rows();
  at = Math.max(0, Math.min(at, all.length - 1));
  all.forEach((row, n) => row.classList.toggle("at", n === at));
  all[at]?.scrollIntoView({ block: "nearest" });
  const mine = ++shown;
  const id = all[at]?.dataset.id;
  document.getElementById("at-hand").textContent = id ? `${at + 1} of ${all.length}: ${id}` : "Nothing waits for an answer.";
  if (!id) {
    place.replaceChildren();
    return;
  }
  setTimeout(async () => {
    if (mine !== shown) return;
    try {
      const found = await record(id);
      if (mine === shown) draw(place, found, innerWidth < 760 ? { height: 80, only: ["Z"] } : { height: 90 });
    } catch {
      if (mine === shown) place.replaceChildren(element("p", { class: "dim" }, "The record of this event is not here."));
    }
  }, 120);
}

async function answer(label) {
  if (!may("operator")) return;
  const all = rows();
  const chosen = all.filter((row) => row.classList.contains("selected"));
  const target = chosen.length ? chosen : all.slice(at, at + 1);
  if (!target.length) return;
  const one = { events: target.map((row) => row.dataset.id), nodes: target.map((row) => ({ row, next: row.nextElementSibling })) };
  // The rows go before the desk has answered: the next key is meant for the next event, however fast it comes.
  for (const row of target) {
    row.classList.remove("selected");
    row.remove();
  }
  show();
  try {
    await inTurn(() => send("/api/v1/events/reviews", { events: one.events, label, sure: true, note: "" }).then(() => done.push(one)));
  } catch (error) {
    putBack(one);
    throw error;
  }
  for (const { row } of one.nodes) row.children[2].replaceChildren(mark(label), element("span", { class: "reviewed" }, "✓"));
}

function putBack({ nodes }) {
  for (const { row, next } of nodes.toReversed()) body.insertBefore(row, next?.isConnected ? next : null);
  at = rows().indexOf(nodes[0].row);
  show();
}

let before = Promise.resolve();

function inTurn(act) {
  // Answers reach the desk in the order of the keys, and what is undone has arrived.
  before = before.then(act, act);
  return before;
}

const undo = () => inTurn(takeBack);

async function takeBack() {
  const last = done.pop();
  if (!last) return;
  try {
    await send("/api/v1/events/reviews", { events: last.events, label: null, sure: true, note: "" });
  } catch (error) {
    done.push(last);
    throw error;
  }
  putBack(last);
}

const failed = (error) => { document.getElementById("at-hand").textContent = `Not saved: ${error.message}`; };
document.getElementById("undo")?.addEventListener("click", () => undo().catch(failed));

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^[1-5]$/.test(event.key)) answer(CLASSES[Number(event.key) - 1]).catch(failed);
  else if (event.key === "j" || event.key === "ArrowDown") { at += 1; show(); }
  else if (event.key === "k" || event.key === "ArrowUp") { at -= 1; show(); }
  else if (event.key === "x") rows()[at]?.classList.toggle("selected");
  else if (event.key === "u") undo().catch(failed);
  else if (event.key === "Enter") { const row = rows()[at]; if (row) location.href = `/event/${encodeURIComponent(row.dataset.id)}`; }
  else return;
  event.preventDefault();
});

body.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-id]");
  if (!row || event.target.closest("a")) return;
  if (event.shiftKey || event.ctrlKey || event.metaKey) row.classList.toggle("selected");
  else { at = rows().indexOf(row); show(); }
});

document.querySelector(".preview .answer")?.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-label]");
  if (button) answer(button.dataset.label).catch(failed);
});

show();
