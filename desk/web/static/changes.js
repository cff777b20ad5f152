// The stream of changes from the desk, which goes on by itself.

const LOST_MS = 6000;
const AGAIN_MS = 4000;

export function follow(last, hear) {
  // Tells `hear` what comes after the change `last` (null: from now on), as { word, id, ... }: "live", "lost", "refused"
  // (the desk or its proxy answers otherwise), "hello", "reload" (too much was missed) and "change". Returns how to stop.
  // The browser connects again by itself and sends Last-Event-ID; the desk then tells what was missed. Where it gives up,
  // as when a proxy answers for a desk that starts anew, a new connection is tried.
  let source = null;
  let lost = null;
  let again = null;
  const open = () => {
    source = new EventSource(`/api/v1/stream${last === null ? "" : `?last=${last}`}`);
    source.onopen = () => {
      clearTimeout(lost);
      lost = null;
      hear({ word: "live" });
    };
    source.onerror = () => {
      lost ??= setTimeout(() => hear({ word: "lost" }), LOST_MS);
      if (source.readyState !== EventSource.CLOSED) return;
      again = setTimeout(open, AGAIN_MS);
      hear({ word: "refused" });
    };
    const told = (event) => {
      last = Number(event.lastEventId);
      hear({ ...(event.type === "change" ? JSON.parse(event.data) : {}), word: event.type, id: last });
    };
    for (const word of ["hello", "reload", "change"]) source.addEventListener(word, told);
  };
  open();
  return () => {
    clearTimeout(lost);
    clearTimeout(again);
    source.close();
  };
}
