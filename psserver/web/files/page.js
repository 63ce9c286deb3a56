// The live page: asks the server for its figures each second, and for ever.
"use strict";

(() => {
  const EVERY_MS = 1000;
  const PATIENCE_MS = 5000;
  const RECENT_S = 10; // As the server's own "in the last ten seconds".
  const GAP_S = 5;
  const MAX_POINTS = 2400;
  const KEPT = ["time", "step", "applied", "dropped", "loss"];
  const TOLD = [...KEPT, "recent_drop_rate", "steps_per_s"];

  let known = null; // What the server that answered last is: its incarnation and generation.
  let points = []; // Of this incarnation, by time; empty: to be fetched anew.
  let awaySince = null;

  const pick = (names, get) => Object.fromEntries(names.map((name) => [name, get(name)]));

  async function get(path) {
    const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer.json();
  }

  /** The history so far; its first point is the server's start. None: ask again. */
  async function fetchPoints(status) {
    const history = await get("history.json").catch(missAnswer);
    if (history?.incarnation !== status.incarnation) return []; // Away, or restarted just now.
    const rows = history.time.map((_, i) => pick(KEPT, (name) => history[name][i]));
    return rows.filter((row) => row.time < status.time);
  }

  /** Turn points into the columns of the charts: rates as told, or from two counts. */
  function derive() {
    let from = 0;
    const share = (dropped, applied) => (dropped + applied ? dropped / (dropped + applied) : null);
    const rows = points.map((point, i) => {
      while (points[from + 1].time <= point.time - RECENT_S) from += 1;
      const { time, step, applied, dropped } = points[from];
      return {
        time: point.time,
        recentDropRate: "recent_drop_rate" in point ? point.recent_drop_rate
          : share(point.dropped - dropped, point.applied - applied),
        dropRate: share(point.dropped, point.applied),
        stepRate: point.steps_per_s ?? (i ? (point.step - step) / (point.time - time) : null),
        loss: point.loss,
      };
    });
    const [first, last] = [points[0], points.at(-1)];
    return {
      ...pick(Object.keys(rows[0]), (name) => rows.map((row) => row[name])),
      meanStepRate: (last.step - first.step) / (last.time - first.time),
    };
  }

  function welcome(status) {
    if (known && known.incarnation !== status.incarnation) {
      const lost = known.generation === status.generation ? "no step" : "what no checkpoint had";
      view.notice("restarted", "The server has restarted at "
        + `${charts.format.clock(status.time - status.uptime_s)}: ${lost} is lost.`);
    }
    if (known?.incarnation !== status.incarnation) points = [];
    known = pick(["incarnation", "generation"], (name) => status[name]);
    awaySince = null;
    document.body.classList.remove("away");
    view.write("connection", "live");
  }

  function missAnswer() {
    awaySince ??= Date.now() / 1000;
    document.body.classList.add("away");
    view.write("connection", `no answer since ${charts.format.clock(awaySince)}`);
  }

  async function update() {
    const status = await get("status.json").catch(missAnswer);
    if (!status) return;
    welcome(status);
    const isStale = !points.length || points.length > MAX_POINTS
      || status.time - points.at(-1).time > GAP_S;
    if (isStale) points = await fetchPoints(status);
    if (!points.length) return;
    points.push(pick(TOLD, (name) => status[name]));
    view.show(status, derive());
  }

  async function run() {
    view.write(document.getElementById("host"), location.host);
    for (;;) {
      await update().catch(reportError); // A fault of ours: the console tells.
      await new Promise((resume) => setTimeout(resume, EVERY_MS));
    }
  }

  run();
})();
