// The stream of changes from the desk, which goes on by itself.

const LOST_MS = 6000;
const AGAIN_MS = 4000;
const SILENT_MS = 65_000; // the desk gives a sign of life every 20 s

export function follow(last, hear) {
  // Tells `hear` what comes after the change `last` (null: from now on), as { word, id, ... }: "live", "lost" (with the
  // time `since` when), "refused" (the desk or its proxy answers otherwise), "hello", "reload" (too much was missed) and
  // "change". Returns how to stop.
  // The browser connects again by itself and sends Last-Event-ID; the desk then tells what was missed. Where it gives up,
  // as when a proxy answers for a desk that starts anew, a new connection is tried; and where one that stands brings
  // nothing any more, not even a sign of life, as when the power of a router failed.
  let source = null;
  let lost = null;
  let again = null;
  let silent = null;
  let heard = Date.now();
  const patient = () => {
    clearTimeout(silent);
    silent = setTimeout(() => {
      source.close();
      hear({ word: "lost", since: heard });
      open();
    }, SILENT_MS);
  };
  const alive = () => {
    heard = Date.now();
    patient();
  };
  const open = () => {
    patient();
    source = new EventSource(`/api/v1/stream${last === null ? "" : `?last=${last}`}`);
    source.onopen = () => {
      clearTimeout(lost);
      lost = null;
      alive();
      hear({ word: "live" });
    };
    source.onerror = () => {
      const since = heard;
      lost ??= setTimeout(() => hear({ word: "lost", since }), LOST_MS);
      if (source.readyState !== EventSource.CLOSED) return;
      clearTimeout(silent);
      again = setTimeout(open, AGAIN_MS);
      hear({ word: "refused" });
    };
    source.addEventListener("here", alive);
    const told = (event) => {
      alive();
      last = Number(event.lastEventId);
      hear({ ...(event.type === "change" ? JSON.parse(event.data) : {}), word: event.type, id: last });
    };
    for (const word of ["hello", "reload", "change"]) source.addEventListener(word, told);
  };
  open();
  return () => {
    clearTimeout(lost);
    clearTimeout(again);
    clearTimeout(silent);
    source.close();
  };
}
