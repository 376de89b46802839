// Bars on uPlot: stacked over time, and distributions. Each series has a pattern of its own besides its colour.
"use strict";

Page.charts = (() => {
  const { el, svg } = Page.parts;
  const words = Page.words;
  const SLOTS = 7; // colours of names; what is left over has "others"
  const FONT = "12px system-ui, -apple-system, sans-serif";
  const AXIS = 52; // pixels left of the plot
  const HEIGHT = 190;
  const NARROWEST = 4.5; // pixels of a bar with its gap; narrower ones are drawn together
  const OUTLINED = 8; // pixels from which on the parts of a bar have an outline

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const slotColour = (slot) => colour(slot < SLOTS ? `series-${slot + 1}` : "series-others");

  // Strokes of a pattern on a tile of 8 by 8.
  const STROKES = [
    [],
    [
      [-2, 10, 10, -2],
      [-2, 2, 2, -2],
      [6, 10, 10, 6],
    ],
    [
      [2, 0, 2, 8],
      [6, 0, 6, 8],
    ],
    [
      [-2, -2, 10, 10],
      [6, -2, 10, 2],
      [-2, 6, 2, 10],
    ],
    [
      [0, 2, 8, 2],
      [0, 6, 8, 6],
    ],
    [
      [0, 4, 8, 4],
      [4, 0, 4, 8],
    ],
    [
      [-2, 10, 10, -2],
      [-2, -2, 10, 10],
    ],
    [[3, 4, 5, 4]],
  ];

  const pattern = (context, slot) => {
    const scale = window.devicePixelRatio || 1;
    const tile = el("canvas", { width: 8 * scale, height: 8 * scale });
    const on = tile.getContext("2d");
    on.scale(scale, scale);
    on.fillStyle = slotColour(slot);
    on.fillRect(0, 0, 8, 8);
    on.strokeStyle = colour("surface");
    on.globalAlpha = 0.75;
    on.lineWidth = 1.4;
    for (const [x, y, toX, toY] of STROKES[Math.min(slot, SLOTS)]) {
      on.beginPath();
      on.moveTo(x, y);
      on.lineTo(toX, toY);
      on.stroke();
    }
    return context.createPattern(tile, "repeat");
  };

  // A small square with the look of a series, for legends and tables.
  const swatch = (slot) => {
    const scale = window.devicePixelRatio || 1;
    const node = el("canvas", { class: "swatch", width: 12 * scale, height: 12 * scale, "aria-hidden": "true" });
    const on = node.getContext("2d");
    on.fillStyle = pattern(on, slot);
    on.fillRect(0, 0, 12 * scale, 12 * scale);
    return node;
  };

  const sums = (rows) => {
    let below = null;
    return rows.map((row) => {
      below = row.map((value, at) => (value ?? 0) + (below ? below[at] : 0));
      return below;
    });
  };

  // Names keep their colours while the page is open, whatever the filter.
  const memory = new Map();
  const slots = (kind, names) => {
    const known = memory.get(kind) ?? new Map();
    memory.set(kind, known);
    const taken = new Set(names.filter((name) => known.has(name)).map((name) => known.get(name)));
    for (const name of names) {
      if (name === null || known.has(name)) continue;
      const free = [...Array(SLOTS).keys()].filter((slot) => !taken.has(slot));
      const unused = free.find((slot) => ![...known.values()].includes(slot));
      known.set(name, unused ?? free[0] ?? SLOTS - 1);
      taken.add(known.get(name));
    }
    return names.map((name) => (name === null ? SLOTS : known.get(name)));
  };

  // Draw several buckets as one bar where there is no room for each. The sums begin at whole hours or days.
  const together = ({ times, step, series }, width) => {
    const fits = (factor) => (width - AXIS) / (times.length / factor) >= NARROWEST;
    const factor = (step >= 86400 ? [1, 7, 28, 91] : [1, 2, 3, 6, 12, 24]).find(fits) ?? 1;
    if (factor === 1) return { times, step, series };
    const shift = step >= 86400 ? 0 : new Date(times[0] * 1000).getTimezoneOffset() * 60;
    const first = (time) => Math.floor((time - shift) / (step * factor)) * step * factor + shift;
    const begins = [...new Set(step >= 86400 ? times.filter((_, at) => at % factor === 0) : times.map(first))];
    const bar = times.map((time, at) => (step >= 86400 ? Math.floor(at / factor) : begins.indexOf(first(time))));
    const summed = (values) => {
      const sum = begins.map(() => 0);
      values.forEach((value, at) => (sum[bar[at]] += value ?? 0));
      return sum;
    };
    const added = series.map((each) => ({ ...each, values: summed(each.values) }));
    return { times: begins, step: step * factor, series: added };
  };

  const bucketText = (start, step) => {
    const [from, to] = [new Date(start * 1000), new Date((start + step) * 1000)];
    if (step === 86400) return words.date(from);
    if (step > 86400) return `${words.date(from)}–${words.date(new Date((start + step - 1) * 1000))}`;
    return step < 3600 ? words.clock(from) : `${words.date(from)} ${words.clock(from)}–${words.clock(to)}`;
  };

  const timeTexts = (_plot, splits, _axis, _space, increment) =>
    splits.map((split) => {
      const then = new Date(split * 1000);
      const midnight = then.getHours() === 0 && then.getMinutes() === 0;
      return increment >= 86400 || midnight ? words.date(then) : words.clock(then);
    });

  const axes = (bottom) => {
    const shared = { stroke: colour("muted"), font: FONT };
    const grid = { stroke: colour("grid"), width: 1 };
    const left = {
      ...shared,
      grid,
      size: AXIS,
      ticks: { show: false },
      values: (_plot, splits) => splits.map((split) => (Number.isInteger(split) ? words.short(split) : "")),
      incrs: [1, 2, 5]
        .flatMap((each) => [...Array(10).keys()].map((power) => each * 10 ** power))
        .sort((a, b) => a - b),
    };
    return [
      { ...shared, grid: { show: false }, ticks: { stroke: colour("grid"), size: 4 }, size: 32, ...bottom },
      left,
    ];
  };

  // Show the values under the pointer, or of the bar that the arrow keys chose.
  const reading = (host, describe) => {
    const tip = el("div", { class: "tip", hidden: true });
    const heard = el("p", { class: "unseen", "aria-live": "polite" });
    let [plot, chosen] = [null, null];
    const show = (at) => {
      tip.hidden = at === null || at === undefined;
      if (tip.hidden) return;
      const { title, rows } = describe(at);
      const lines = rows.map(({ slot, name, text }) =>
        el("li", {}, slot === null ? null : swatch(slot), el("span", {}, name), el("b", {}, text)),
      );
      tip.replaceChildren(el("p", {}, title), el("ul", {}, lines));
      const left = AXIS + plot.valToPos(plot.data[0][at], "x");
      const width = tip.offsetWidth;
      tip.style.left = `${Math.max(0, Math.min(left - width / 2, host.clientWidth - width))}px`;
    };
    const moved = (event) => {
      const last = plot.data[0].length - 1;
      const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
      if (event.key === "Escape") return show(null);
      if (!(event.key in steps) || last < 0) return undefined;
      event.preventDefault();
      const from = chosen ?? (event.key === "ArrowLeft" ? last + 1 : -1);
      chosen = Math.max(0, Math.min(last, from + steps[event.key]));
      show(chosen);
      const { title, rows } = describe(chosen);
      heard.textContent = `${title}: ${rows.map(({ name, text }) => `${name} ${text}`).join(", ") || "nothing"}`;
      return undefined;
    };
    host.addEventListener("keydown", moved);
    host.addEventListener("blur", () => show((chosen = null)));
    host.append(tip);
    return {
      heard,
      of: (made) => (plot = made),
      setCursor: [(made) => show(made.cursor.left < 0 ? null : made.cursor.idx)],
    };
  };

  // A chart in `host` that is drawn again when its width or the colours change. `options()` and `data()` give uPlot's.
  const chart = (label, describe, options, data) => {
    const host = el("div", { class: "chart", tabindex: "0", role: "img", "aria-label": label });
    const read = reading(host, describe);
    let plot = null;
    const draw = () => {
      if (!host.isConnected || host.clientWidth === 0) return;
      plot?.destroy();
      const given = options();
      const fixed = {
        width: host.clientWidth,
        height: HEIGHT,
        legend: { show: false },
        padding: [8, 20, 0, 0],
        cursor: { y: false, points: { show: false }, drag: { x: false, y: false, setScale: false } },
      };
      const hooks = { ...given.hooks, init: [read.of], setCursor: read.setCursor };
      plot = new uPlot({ ...fixed, ...given, hooks }, data(), host);
    };
    const watch = new ResizeObserver(() => {
      if (host.clientWidth !== plot?.width) draw();
    });
    watch.observe(host);
    return { node: el("div", {}, host, read.heard), draw, label: (text) => host.setAttribute("aria-label", text) };
  };

  const bars = uPlot.paths.bars({ size: [0.86, 56], align: 1, gap: 0 });

  // Stacked bars over time. `get()` returns {times, step, series: [{label, slot, values}]}, the first series lowest.
  const overTime = (label, given) => {
    let drawn = null;
    const get = () => (drawn ??= together(given(), made.node.clientWidth));
    const describe = (at) => {
      const { times, step, series } = get();
      const used = series.filter((each) => each.values[at]);
      const rows = used.map((each) => ({ slot: each.slot, name: each.label, text: words.count(each.values[at]) }));
      return { title: bucketText(times[at], step), rows: rows.reverse() };
    };
    const options = () => {
      const { times, step, series } = get();
      const end = times.length ? times[times.length - 1] + step : 1;
      const room = (made.node.clientWidth - AXIS) / Math.max(1, times.length);
      const layers = [...series].reverse().map((each) => ({
        label: each.label,
        fill: (plot) => pattern(plot.ctx, each.slot),
        stroke: () => colour("surface"),
        width: room >= OUTLINED ? 1 : 0,
        paths: bars,
        points: { show: false },
      }));
      return {
        scales: {
          x: { time: true, range: () => [times[0] ?? 0, end] },
          y: { range: (_plot, _low, high) => [0, Math.max(4, (high || 0) * 1.08)] },
        },
        series: [{}, ...layers],
        axes: axes({ values: timeTexts, space: 64 }),
      };
    };
    const data = () => {
      const { times, series } = get();
      return [times, ...sums(series.map((each) => each.values)).reverse()];
    };
    const made = chart(label, describe, () => ((drawn = null), options()), data);
    return made;
  };

  // A distribution. `get()` returns {edges, counts, median}; `text` says what an edge is.
  const distribution = (label, get, text) => {
    const describe = (at) => {
      const { edges, counts } = get();
      return {
        title: `${text(edges[at])} to ${text(edges[at + 1])}`,
        rows: [{ slot: null, name: "requests", text: words.count(counts[at]) }],
      };
    };
    const middle = (plot) => {
      const { edges, median } = get();
      const at = edges.findIndex((edge, i) => edge <= median && median < edges[i + 1]);
      if (!words.isNumber(median) || at < 0) return;
      const x = plot.valToPos(at + (median - edges[at]) / (edges[at + 1] - edges[at]), "x", true);
      const { ctx, bbox } = plot;
      ctx.save();
      ctx.strokeStyle = colour("text");
      ctx.lineWidth = 2 * devicePixelRatio;
      ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.restore();
    };
    const options = () => {
      const { edges } = get();
      const most = edges.length - 1;
      const texts = (_plot, splits) => splits.map((at) => (edges[at] === undefined ? "" : text(edges[at])));
      return {
        scales: {
          x: { time: false, range: () => [0, Math.max(1, most)] },
          y: { range: (_plot, _low, high) => [0, Math.max(4, (high || 0) * 1.08)] },
        },
        series: [{}, { fill: () => slotColour(0), width: 0, paths: bars, points: { show: false } }],
        axes: axes({ values: texts, incrs: [1, 2, 3, 4, 6, 12], space: 52 }),
        hooks: { draw: [middle] },
      };
    };
    return chart(label, describe, options, () => [get().counts.map((_, at) => at), get().counts]);
  };

  // The last values as a line, the newest at the right.
  const sparkline = () => {
    const [width, height] = [96, 22];
    const line = svg("polyline", { points: "" });
    const area = svg("polygon", { points: "" });
    const node = svg("svg", {
      class: "spark",
      viewBox: `0 0 ${width} ${height}`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
    node.append(area, line);
    const update = (values, most) => {
      const high = Math.max(10, ...values) * 1.1;
      const x = (at) => width - 1 - ((values.length - 1 - at) * (width - 2)) / (most - 1);
      const points = values.map(
        (value, at) => `${x(at).toFixed(1)},${(height - 1 - (value / high) * (height - 3)).toFixed(1)}`,
      );
      line.setAttribute("points", points.join(" "));
      const ends = values.length ? [`${width - 1},${height}`, `${x(0).toFixed(1)},${height}`] : [];
      area.setAttribute("points", [...points, ...ends].join(" "));
    };
    return { node, update };
  };

  return { bucketText, distribution, overTime, slots, sparkline, swatch };
})();
