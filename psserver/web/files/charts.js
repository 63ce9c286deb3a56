// Charts that look alike on the live page and in a report: lines by uPlot, and bars.
//
// A classic script with one global, `charts`, so that a report can hold it inline. It
// fetches nothing. Colours are the names of custom properties of page.css.
"use strict";

const charts = (() => {
  const HEIGHT = 190;
  const DAY_S = 86400;

  /** Make an element; `attributes` go by their HTML names, children may be text. */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  /** As Math.min and Math.max, of however many values. */
  const lowest = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
  const highest = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

  const finite = (value) => typeof value === "number" && Number.isFinite(value);
  const number = (least, most = least) => {
    const digits = { minimumFractionDigits: least, maximumFractionDigits: most };
    const format = new Intl.NumberFormat("en", digits);
    return (value) => (finite(value) ? format.format(value) : "–");
  };
  const [whole, tenths, short] = [number(0), number(1), number(0, 2)];

  /** How figures are written; what is unknown is a dash. */
  const format = {
    count: whole,
    rate: (value) => (value < 100 ? tenths : whole)(value),
    short,
    percent: (value) => (finite(value) ? `${(100 * value).toFixed(1)}%` : "–"),
    loss: (value) => (finite(value) ? Number(value.toPrecision(4)).toString() : "–"),
    duration(seconds) {
      const s = Math.floor(seconds);
      const parts = [[Math.floor(s / DAY_S), "d"], [Math.floor(s / 3600) % 24, "h"],
        [Math.floor(s / 60) % 60, "min"], [s % 60, "s"]];
      const first = parts.findIndex(([n]) => n > 0);
      return parts.slice(first < 0 ? 3 : first).slice(0, 2).map(([n, u]) => `${n} ${u}`).join(" ");
    },
    clock: (time, options = { timeStyle: "medium" }) =>
      new Intl.DateTimeFormat("en", { ...options, hourCycle: "h23" }).format(time * 1000),
  };

  /** What an x axis can count: how it is written, on the axis and for one point. */
  const axes = {
    clock: {
      ticks: (u, splits, axis, space, step) => splits.map((time) => format.clock(time,
        step >= DAY_S ? { month: "short", day: "numeric" }
          : { hour: "2-digit", minute: "2-digit", second: step < 60 ? "2-digit" : undefined })),
      point: (time) => format.clock(time),
      time: true,
    },
    elapsed: {
      ticks: (u, splits) => splits.map(format.duration),
      point: format.duration,
      time: true,
    },
    step: {
      ticks: (u, splits) => splits.map(format.count),
      point: (step) => `step ${format.count(step)}`,
      time: false,
    },
  };

  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function swatch(name, text) {
    const made = element("span", { class: "swatch" }, text);
    made.style.setProperty("--swatch", `var(${name})`);
    return made;
  }

  /** Which points stand alone, so that no line shows them. */
  function alone(u, series) {
    const ys = u.data[series];
    const known = (index) => ys[index] !== null && ys[index] !== undefined;
    return ys.flatMap((_, i) => (known(i) && !known(i - 1) && !known(i + 1) ? [i] : []));
  }

  /** A figure with a name, a readout at the right, a picture, and a summary in words. */
  function frame(parent, title) {
    const id = `figure-${(frame.made = (frame.made ?? 0) + 1)}`;
    const heading = element("h3", { id }, title);
    const readout = element("span", { class: "readout", "aria-hidden": "true" });
    const picture = element("div", { class: "picture", "aria-hidden": "true" });
    const summary = element("p", { class: "summary", id: `${id}-summary` });
    const head = element("div", { class: "figure-head" }, heading, readout);
    parent.append(element("figure",
      { "aria-labelledby": id, "aria-describedby": summary.id }, head, picture, summary));
    return { readout, picture, summary };
  }

  /**
   * Add a chart of lines over one x axis to `parent`.
   *
   * @param series - [{label, colour, dash?}], `colour` as in "--accent".
   * @param x - "clock" (seconds since 1970), "elapsed" (seconds) or "step".
   * @param text - Writes a y value: one of `format`, say; `ticks` does so on the axis.
   * @param range - [least, most] y shown at least; null: as the data are.
   * @returns {show(columns, summary, marks)}: columns are [xs, ys, ...] with null where
   *   a value is unknown, the summary says the same in words, and marks are x values
   *   where a line goes down.
   */
  function lines(parent, { title, series, x = "clock", text = format.rate,
    ticks = text, range = null }) {
    const { readout, picture, summary } = frame(parent, title);
    const axis = axes[x];
    let marks = [];

    function tell(u) {
      const pointed = u.cursor.idx ?? null;
      const index = pointed ?? u.data[0].length - 1;
      const values = series.map(({ label, colour: name }, i) => {
        const value = text(u.data[i + 1][index]);
        return series.length > 1 ? swatch(name, `${label} ${value}`) : value;
      });
      readout.replaceChildren(pointed === null ? "" : axis.point(u.data[0][index]), " ",
        ...(index < 0 ? [] : values.flatMap((value) => [value, " "])));
    }

    function mark(u) {
      u.ctx.save();
      u.ctx.strokeStyle = colour("--muted");
      u.ctx.setLineDash([4, 4]);
      for (const at of marks) {
        const px = Math.round(u.valToPos(at, "x", true));
        u.ctx.beginPath();
        u.ctx.moveTo(px, u.bbox.top);
        u.ctx.lineTo(px, u.bbox.top + u.bbox.height);
        u.ctx.stroke();
      }
      u.ctx.restore();
    }

    function yRange(u, least, most) {
      if (least === null) return range ?? [0, 1];
      if (!range) return uPlot.rangeNum(least, most, 0.1, true);
      const low = Math.min(range[0], least);
      return [low, uPlot.rangeNum(low, Math.max(range[1], most), 0.1, true)[1]];
    }

    const style = { stroke: () => colour("--muted"), font: "12px system-ui, sans-serif",
      ticks: { show: false } };
    const grid = { stroke: () => colour("--grid"), width: 1 };
    const u = new uPlot({
      width: picture.clientWidth || 300,
      height: HEIGHT,
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: { x: { time: axis.time }, y: { range: yRange } },
      axes: [
        { ...style, grid: { show: false }, values: axis.ticks, space: 76, size: 28 },
        { ...style, grid, values: (_, splits) => splits.map(ticks), space: 36, size: 54 },
      ],
      series: [{}, ...series.map(({ label, colour: name, dash }) => ({
        label, dash, stroke: () => colour(name), width: 2,
        points: { show: true, filter: alone, size: 5, fill: () => colour(name) },
      }))],
      hooks: { setCursor: [tell], draw: [mark] },
    }, [[], ...series.map(() => [])], picture);

    const fit = () => u.setSize({ width: picture.clientWidth, height: HEIGHT });
    new ResizeObserver(fit).observe(picture);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => u.redraw());
    return {
      show(columns, words, at = []) {
        marks = at;
        summary.textContent = words;
        u.setData(columns);
        tell(u);
      },
    };
  }

  /** Return the first and the last of the steps that count as one: of 1,000 on, three digits tell. */
  function alike(steps) {
    let unit = 1;
    while (steps >= 1000 * unit) unit *= 10;
    const first = steps - (steps % unit);
    return { first, last: first + unit - 1 };
  }

  /** Return the limit, if it parts all judged pushes into applied and dropped ones; else null. */
  function parting(staleness, limit, dropped) {
    if (limit === null) return null;
    const { first, last } = alike(limit);
    const over = Object.entries(staleness).filter(([steps]) => Number(steps) > last)
      .reduce((sum, [, n]) => sum + n, 0);
    const unclear = limit < last ? staleness[first] ?? 0 : 0;
    return over <= dropped && dropped <= over + unclear ? limit : null;
  }

  /**
   * Gather a staleness histogram into at most `most` bars, none of which crosses the limit,
   * or the last of the steps that count as the limit does.
   *
   * @param staleness - {steps: pushes}.
   * @param limit - In steps, inclusive; null: off.
   * @returns [{first, last, pushes, over}], `last` inclusive, `over` the limit or not.
   */
  function gather(staleness, limit, most = 24) {
    const counts = Object.entries(staleness).map(([steps, n]) => [Number(steps), n]);
    if (!counts.length) return [];
    const worst = highest(Object.keys(staleness));
    const fine = worst < most;
    const width = fine ? 1 : Math.ceil((worst + 1) / (most - 1));
    const end = limit === null ? null : alike(limit).last;
    const cut = end === null || end < 0 ? 0 : (end + 1) % width;
    const edges = [0];
    for (let edge = cut || width; edge <= worst; edge += width) edges.push(alike(edge).first);
    edges.push(Math.max(edges.at(-1) + width, alike(worst).last + 1));
    const bars = edges.slice(0, -1).map((first, i) => ({ first, last: edges[i + 1] - 1,
      pushes: 0, over: end !== null && first > end }));
    for (const [steps, n] of counts) bars.findLast((bar) => bar.first <= steps).pushes += n;
    return bars;
  }

  const steps = ({ first, last }) => (first === last ? `${first}` : `${first}–${last}`);

  /** Add a histogram to `parent`; `show(bars, summary)` takes what `gather` returns. */
  function histogram(parent, { title }) {
    const { readout, picture, summary } = frame(parent, title);
    picture.classList.add("histogram");
    return {
      show(bars, words) {
        const tallest = highest([1, ...bars.map((bar) => bar.pushes)]);
        const every = Math.ceil(bars.length / 8);
        picture.replaceChildren(...bars.map((bar, i) => {
          const column = element("div", { class: bar.over ? "bar over" : "bar",
            title: `${steps(bar)} steps: ${format.count(bar.pushes)} pushes` });
          const fill = element("i", bar.pushes ? { class: "some" } : {});
          fill.style.height = `${(100 * bar.pushes) / tallest}%`;
          column.append(element("span", { class: "fill" }, fill),
            element("b", {}, i % every ? "" : `${bar.first}`));
          return column;
        }));
        readout.replaceChildren(swatch("--accent", "applied"), " ", swatch("--drop", "dropped"));
        summary.textContent = words;
      },
    };
  }

  return { element, format, lowest, highest, lines, parting, gather, histogram };
})();
