// What a server's status looks like: fills index.html in, and keeps its charts.
"use strict";

const view = (() => {
  const MAX_ROWS = 200;
  const byName = new Intl.Collator("en", { numeric: true });
  const { element, format } = charts;
  const find = (id) => document.getElementById(id);

  /** Say something only where it is new: what stands still can be selected, and read. */
  function write(id, text) {
    const place = typeof id === "string" ? find(id) : id;
    if (place.textContent !== text) place.textContent = text;
  }

  function notice(id, text) {
    write(id, text || "");
    find(id).toggleAttribute("hidden", !text);
  }

  const plural = (n, noun) => `${format.count(n)} ${noun}${n === 1 ? "" : "s"}`;
  const limitOf = (status) => (status.limit_now === null ? "off" : plural(status.limit_now, "step"));
  const policyOf = ({ limit, limit_now: now, staleness_policy: policy }) =>
    (limit === now ? "" : limit === null ? " now" : ` now, ${format.count(limit)} at most`)
    + (policy === "drop" ? "" : `, policy ${policy}`);

  const parent = find("charts");
  const dropRate = charts.lines(parent, {
    title: "Drop rate", text: format.percent, range: [0, 0.05],
    ticks: (value) => `${format.short(100 * value)}%`,
    series: [{ label: "overall", colour: "--muted", dash: [5, 4] },
      { label: "last 10 s", colour: "--drop" }],
  });
  const stepRate = charts.lines(parent, {
    title: "Steps per second", ticks: format.short, range: [0, 1],
    series: [{ label: "steps/s", colour: "--accent" }],
  });
  const loss = charts.lines(parent, {
    title: "Loss", text: format.loss, series: [{ label: "loss", colour: "--accent" }],
  });
  const staleness = charts.histogram(parent, { title: "Staleness, in steps" });

  function headline(status) {
    const judged = status.applied + status.dropped;
    write("step", format.count(status.step));
    write("steps_per_s", format.rate(status.steps_per_s));
    write("recent_drop_rate", format.percent(status.recent_drop_rate));
    write("drop_rate", format.percent(judged ? status.drop_rate : null));
    write("loss", format.loss(status.loss));
    const active = status.workers.filter((worker) => worker.state === "active").length;
    write("active", `${format.count(active)} of ${format.count(status.workers.length)}`);
    write("rule", status.rule);
    write("limit", limitOf(status) + policyOf(status));
    write("initialized", status.initialized ? "initialized" : "none yet: the first worker brings them");
    write("uptime", format.duration(status.uptime_s));
    write("generation", status.generation);
    document.title = `${format.percent(judged ? status.drop_rate : null)} dropped · ${status.name}`;
    write("name", status.name);
  }

  function tellStarved(status) {
    const names = status.workers.filter((worker) => worker.state === "starved")
      .map((worker) => worker.name);
    const shown = names.slice(0, 3).join(", ");
    const more = names.length > 3 ? ` and ${names.length - 3} more` : "";
    notice("starved", names.length && `Starved, nearly all recent pushes dropped: ${shown}${more}`);
  }

  function tellKept({ step, durability }) {
    const { mode, saved_step: saved, saved_s: age, failures, corrupt } = durability;
    const newest = saved === null ? "no checkpoint yet"
      : `checkpoint of step ${format.count(saved)}, ${format.duration(age)} old`;
    const atRisk = plural(Math.max(0, step - saved), "step"); // It may be newer than the rest.
    write("kept", mode === "none" ? "nothing"
      : mode === "log" ? `log, all ${plural(step, "step")}; ${newest}` : `${newest}; ${atRisk} at risk`);
    notice("unsaved", failures && `${plural(failures, "checkpoint")} could not be saved: see the server's log.`);
    notice("corrupt", corrupt && `The server went on from an older checkpoint: ${format.count(corrupt)} set aside as corrupt.`);
  }

  function drawCurves(status, curves) {
    const judged = status.applied + status.dropped;
    const known = (values) => values.filter((value) => value !== null);
    dropRate.show([curves.time, curves.dropRate, curves.recentDropRate], judged
      ? `${format.percent(status.recent_drop_rate)} of the pushes of the last 10 s were dropped, `
        + `${format.percent(status.drop_rate)} of all.` : "No push yet.");
    stepRate.show([curves.time, curves.stepRate],
      `${format.rate(status.steps_per_s)} steps/s in the last 10 s, `
      + `${format.rate(curves.meanStepRate)} since the start.`);
    const losses = known(curves.loss);
    loss.show([curves.time, curves.loss], losses.length
      ? `The mean of what workers told last: ${format.loss(losses.at(-1))} at last, `
        + `${format.loss(charts.lowest(losses))} at best.` : "No loss was told yet.");
  }

  function drawStaleness(status) {
    const judged = status.applied + status.dropped;
    const parting = charts.parting(status.staleness, status.limit_now, status.dropped);
    const stale = status.dropped - status.snapshot_gone;
    const isParted = charts.parting(status.staleness, status.limit_now, stale) !== null;
    const limit = isParted || !stale ? `a limit of ${limitOf(status)}`
      : status.staleness_policy.startsWith("groups:") ? "the limits of groups" : "limits that have changed";
    const factor = status.withheld
      ? `, at a mean factor of ${format.short(1 - status.withheld / status.applied)}` : "";
    staleness.show(charts.gather(status.staleness, parting), judged
      ? `${format.count(status.applied)} pushes applied${factor}, ${format.count(status.dropped)} dropped `
        + `at ${limit}; the oldest was `
        + `${plural(charts.highest(Object.keys(status.staleness)), "step")} old.`
      : "No push yet.");
  }

  const columns = [
    (worker) => worker.name,
    (worker) => (worker.waiting && worker.state === "active" ? "waiting" : worker.state),
    (worker) => format.percent(worker.applied + worker.dropped ? worker.drop_rate : null),
    (worker) => format.count(worker.consecutive_drops),
    (worker) => format.count(worker.longest_drops),
    (worker) => format.rate(worker.pushes_per_s),
    (worker) => format.count(worker.applied),
    (worker) => format.count(worker.dropped),
    (worker) => format.loss(worker.loss),
    (worker) => (worker.last_seen_s < 2 ? "now" : `${format.duration(worker.last_seen_s)} ago`),
  ];

  const makeRow = () => element("tr", {}, element("th", { scope: "row" }),
    ...columns.slice(1).map(() => element("td")));

  function fillTable(workers) {
    const starved = (worker) => (worker.state === "starved" ? 1 : 0);
    const worst = (a, b) => starved(b) - starved(a) || b.drop_rate - a.drop_rate;
    const steady = (a, b) => starved(b) - starved(a) || byName.compare(a.name, b.name);
    const shown = [...workers].sort(worst).slice(0, MAX_ROWS).sort(steady);
    const body = find("workers");
    while (body.rows.length < shown.length) body.append(makeRow());
    while (body.rows.length > shown.length) body.lastChild.remove();
    shown.forEach((worker, i) => {
      body.rows[i].className = worker.state;
      body.rows[i].cells[0].title = worker.name; // Which may be too long to be seen.
      columns.forEach((column, j) => write(body.rows[i].cells[j], column(worker)));
    });
    const left = workers.length - shown.length;
    write("workers-note", left
      ? `${plural(left, "more worker")} left out: shown are the starved ones, and those with the highest drop rates.`
      : workers.length ? "" : "No worker has joined yet.");
  }

  function listOthers(status) {
    const gone = status.snapshot_gone;
    const rows = [...(gone ? [["SNAPSHOT_GONE, of those dropped", gone]] : []),
      ["Duplicates", status.duplicate],
      ["Rejected", status.received - status.applied - status.dropped - status.duplicate],
      ...Object.entries(status.rejected),
      ["Of callers that never joined or are forgotten", status.unjoined.received]];
    const list = find("others");
    if (list.children.length !== rows.length) {
      list.replaceChildren(...rows.map(() => element("div", {}, element("dt"), element("dd"))));
    }
    rows.forEach(([name, pushes], i) => {
      write(list.children[i].firstChild, name);
      write(list.children[i].lastChild, format.count(pushes));
    });
  }

  return {
    write,
    notice,
    show(status, curves) {
      headline(status);
      tellStarved(status);
      tellKept(status);
      drawCurves(status, curves);
      drawStaleness(status);
      fillTable(status.workers);
      listOthers(status);
    },
  };
})();
