// Draws a report from the figures within the page: `psserver report` has summed them up.
// Names come from outside: they are only ever text.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { element, format } = charts;
  const { starts, total, curves, workers, targets, staleness, unjoined, terms } = data;
  const many = starts.length > 1;
  const last = starts.at(-1);
  workers.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  const place = (id) => document.getElementById(id);
  const plural = (n, word) => `${format.count(n)} ${word}${n === 1 ? "" : "s"}`;
  const steps = (value) => (value === null ? "–" : format.rate(value));
  const limit = (row) => (row.limit === null ? "off" : plural(row.limit, "step"));
  const policy = (row) => (row.policy === "drop" ? "" : `, policy ${row.policy}`);
  const dashed = (text) => text.replace("-", "–");
  const day = (time) => format.clock(time, { dateStyle: "medium", timeStyle: "short" });
  const rejected = (counts) => Object.values(counts.rejected).reduce((sum, n) => sum + n, 0);
  const why = (counts) => Object.entries(counts.rejected)
    .map(([reason, n]) => `${format.count(n)} ${reason}`).join(", ");

  /** A table in a box of its own: columns are [title, cell of a row]; a first cell is a header. */
  function table(parent, { caption, columns, rows, foot = [], kind = "" }) {
    const cells = (row) => element("tr", {}, ...columns.map(([, write], i) => {
      const cell = i ? element("td") : element("th", { scope: "row" });
      cell.append(write(row));
      return cell;
    }));
    const head = columns.map(([title]) => element("th", { scope: "col" }, title));
    const id = `table-${(table.made = (table.made ?? 0) + 1)}`;
    const body = element("tbody");
    for (const row of rows) body.append(cells(row));
    const made = element("table", { class: kind, "aria-labelledby": id },
      element("thead", {}, element("tr", {}, ...head)), body);
    if (foot.length) made.append(element("tfoot", {}, ...foot.map(cells)));
    parent.append(element("div", { class: "card" }, element("h3", { id }, caption),
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": id },
        made)));
    return made;
  }

  const note = (parent, text) => parent.append(element("p", { class: "note" }, text));

  function headline() {
    document.title = `${data.file}: a run of asyncps`;
    place("title").textContent = `Run ${data.file}`;
    place("about").textContent = [
      last.rule,
      `limit ${limit(last)}${policy(last)}`,
      day(starts[0].time),
      plural(total.samples, "sample"),
      ...(many ? [`${starts.length} starts of the server`] : []),
    ].join(" · ");
    for (const [name, value, more] of [
      ["Drop rate", format.percent(total.drop_rate),
        `of ${format.count(total.applied + total.dropped)} judged pushes`],
      ["Steps", format.count(total.step), many ? "of all starts" : "one for each applied push"],
      ["Time", format.duration(total.uptime_s), many ? "of all starts" : "of the server"],
      ["Workers", format.count(workers.length), "that have joined"],
      ["Loss", format.loss(data.last_loss), `best ${format.loss(data.best_loss)}`],
      ["Staleness", format.count(staleness.median), `steps at the median, mean ${steps(staleness.mean)}`],
    ]) {
      place("figures").append(element("div", { class: "card" },
        element("dt", {}, name), element("dd", {}, value, " ",
          element("small", {}, more))));
    }
  }

  const NAMES = ["drop_rate", "steps_per_s", "loss", "staleness"];

  /** The curves with one row for each step: of more it has what was known last. */
  function bySteps() {
    const rows = Object.fromEntries(["steps", ...NAMES].map((name) => [name, []]));
    let parted = true;
    curves.steps.forEach((step, i) => {
      const parts = NAMES.every((name) => curves[name][i] === null);
      if (parts || parted || rows.steps.at(-1) !== step) {
        rows.steps.push(step);
        for (const name of NAMES) rows[name].push(null);
      }
      parted = parts;
      for (const name of NAMES) rows[name].splice(-1, 1, curves[name][i] ?? rows[name].at(-1));
    });
    return rows;
  }

  function summary(column, text) {
    const known = column.filter((value) => value !== null);
    if (!known.length) return "Nothing is known.";
    const least = charts.lowest(known), most = charts.highest(known);
    return `From ${text(known[0])} to ${text(known.at(-1))}; least ${text(least)}, most ${text(most)}.`;
  }

  function draw() {
    const DROP = { title: "Drop rate", name: "drop_rate", colour: "--drop", text: format.percent,
      range: [0, 0.1] };
    const LOSS = { title: "Loss", name: "loss", colour: "--accent", text: format.loss };
    const RATE = { title: "Steps a second", name: "steps_per_s", colour: "--good",
      text: format.rate, range: [0, 1] };
    const AGE = { title: "Mean staleness", name: "staleness", colour: "--muted",
      text: steps, range: [0, 1] };
    const restarts = starts.slice(1);
    const before = starts.map((_, i) => starts.slice(0, i).reduce((sum, s) => sum + s.step, 0));
    for (const [id, x, xs, rows, marks, kinds] of [
      ["charts-time", "elapsed", "seconds", curves, restarts.map((s) => s.began_s),
        [DROP, LOSS, RATE, AGE]],
      ["charts-step", "step", "steps", bySteps(), before.slice(1), [DROP, LOSS]],
    ]) {
      for (const { title, name, colour, text, range } of kinds) {
        const over = x === "step" ? `${title} by step` : `${title} over time`;
        const series = [{ label: title, colour }];
        charts.lines(place(id), { title: over, series, x, text, range })
          .show([rows[xs], rows[name]], summary(rows[name], text), marks);
      }
    }
    if (many) {
      note(place("charts-time").parentElement, "A dashed line is a restart of the server. "
        + "Steps of all starts are added up, also those that a restart undid.");
    }
  }

  function reached() {
    if (!targets.length) {
      note(place("targets"), "The loss never fell below the first one told, or none was told.");
      return;
    }
    const unless = (write) => (row) => (row.start === null ? "–" : write(row));
    table(place("targets"), {
      caption: "When the recent loss first was as low",
      columns: [
        ["loss", (row) => format.loss(row.loss)],
        ["time", (row) => (row.start === null ? "not reached"
          : (row.at_first_sight ? "at most " : "") + format.duration(row.uptime_s))],
        ["steps", unless((row) => format.count(row.step))],
        ["pushes judged", unless((row) => format.count(row.judged))],
        ...(many ? [["start", unless((row) => `${row.start + 1}`)]] : []),
      ],
      rows: targets,
    });
    note(place("targets"), "The recent loss is the mean of what workers told last, twenty "
      + `times or more if 10 s have so many. Time is since the server's ${many ? "own " : ""}start; steps and `
      + "pushes are as the server counts them, which in a data directory outlast a start.");
  }

  function ages() {
    const parting = charts.parting(staleness.counts, last.limit, total.dropped);
    const one = last.limit === null ? !total.dropped : parting !== null;
    const bars = charts.gather(staleness.counts, parting);
    const otherwise = last.policy.startsWith("groups:") ? "by group" : "changed";
    const mean = steps(staleness.mean), median = format.count(staleness.median);
    charts.histogram(place("staleness"), { title: "Judged pushes by staleness, in steps" })
      .show(bars, bars.length ? `Mean ${mean}, median ${median} steps; limit ${one ? limit(last) : otherwise}.`
        : "No push was judged.");
    if (!workers.length) return;
    const made = table(place("staleness-workers"), {
      caption: "Staleness by worker: the share of its judged pushes, by steps",
      kind: "names heat",
      columns: [
        ["worker", (row) => row.name],
        ["median", (row) => dashed(row.median_staleness ?? "-")],
        ["mean", (row) => steps(row.mean_staleness)],
        ...data.buckets.map((bucket, i) => [dashed(bucket), (row) => share(row, i)]),
      ],
      rows: workers,
    });
    shade(made, parting);
    if (one) note(place("staleness-workers"), "Columns beyond the limit hold dropped pushes.");
  }

  function judging() {
    if (terms.length < 2) return;
    const MOST = 50;
    table(place("terms"), {
      caption: "By what pushes were judged, and since when",
      columns: [
        ["since", (row) => format.duration(row.seconds)],
        ["steps", (row) => format.count(row.step)],
        ["limit", limit],
        ["policy", (row) => row.policy],
      ],
      rows: terms.slice(-MOST),
    });
    if (terms.length > MOST) note(place("terms"), `${plural(terms.length - MOST, "earlier change")} left out.`);
  }

  function part(worker, bucket) {
    const judged = worker.applied + worker.dropped;
    return judged ? worker.staleness[bucket] / judged : 0;
  }

  function share(worker, bucket) {
    const of = part(worker, bucket);
    if (!of) return "";
    return of < 0.005 ? "<1%" : `${Math.round(100 * of)}%`;
  }

  function shade(made, most) {
    const BEFORE = 3; // Columns that are no bucket.
    [...made.tBodies[0].rows].forEach((row, w) => data.buckets.forEach((bucket, b) => {
      const cell = row.cells[b + BEFORE], of = part(workers[w], b);
      if (!of) return;
      const over = most !== null && Number.parseInt(bucket, 10) > most;
      cell.setAttribute(over ? "data-over" : "data-share", "");
      cell.style.setProperty("--share", `${Math.round(8 + 62 * of)}%`);
    }));
  }

  function everyone() {
    const loud = (kind, text) => element("span", { class: kind }, text);
    const strangers = unjoined.received
      ? [{ ...unjoined, name: "callers that never joined or are forgotten", state: "–" }] : [];
    table(place("workers"), {
      caption: "What became of each worker's pushes",
      kind: "names",
      columns: [
        ["worker", (row) => row.name],
        ["at the end", (row) => (row.state === "starved" ? loud("starved", "starved")
          : row.state ?? "gone")],
        ["starved for", (row) => (row.starved_s
          ? loud("starved", format.duration(row.starved_s)) : "–")],
        ["applied", (row) => format.count(row.applied)],
        ["dropped", (row) => format.count(row.dropped)],
        ["drop rate", (row) => (row.dropped ? loud("dropped", format.percent(row.drop_rate))
          : format.percent(row.drop_rate))],
        ["longest run of drops", (row) => format.count(row.longest_drops)],
        ["duplicate", (row) => format.count(row.duplicate)],
        ["rejected", (row) => format.count(rejected(row))],
        ["last loss", (row) => format.loss(row.loss)],
      ],
      rows: workers,
      foot: strangers,
    });
  }

  function outcomes() {
    const label = (row) => (row === total ? "all starts, added up"
      : `${many ? `start ${starts.indexOf(row) + 1}, ` : ""}${day(row.time)}`);
    table(place("outcomes-table"), {
      caption: many ? "By start of the server: what each has counted itself"
        : "Since the server's start",
      kind: "names",
      columns: [
        ["start", label],
        ["time", (row) => format.duration(row.uptime_s)],
        ["steps", (row) => format.count(row.step)],
        ["received", (row) => format.count(row.received)],
        ["applied", (row) => format.count(row.applied)],
        ["dropped", (row) => format.count(row.dropped)],
        ["drop rate", (row) => format.percent(row.drop_rate)],
        ["duplicate", (row) => format.count(row.duplicate)],
        ["rejected", (row) => format.count(rejected(row)) + (rejected(row) ? ` (${why(row)})` : "")],
        ...(many ? [["rule", (row) => row.rule ?? ""],
          ["limit", (row) => (row === total ? "" : limit(row) + policy(row))]] : []),
      ],
      rows: starts,
      foot: many ? [total] : [],
    });
    for (const start of starts.filter((each) => !each.is_whole)) {
      note(place("outcomes-table"), `The file begins ${format.duration(start.first_uptime_s)} after `
        + `the start of ${day(start.time)}: what came before is in the counts, not in the curves.`);
    }
  }

  headline();
  draw();
  reached();
  ages();
  judging();
  everyone();
  outcomes();
})();
