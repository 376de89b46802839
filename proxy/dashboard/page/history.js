// The history: totals, charts and lists of one view, or why there is none.
"use strict";

Page.history = (() => {
  const { byId, el, empty, icon, refill } = Page.parts;
  const words = Page.words;

  let built = null; // the charts and lists, once there is a first view
  let before = "";
  let asked = 0;

  // A total. One that can be looked into is a button.
  const tile = (title, value, under, action = null, exact = null) => {
    const content = [
      el("span", { class: "tile-title" }, title),
      el("b", { class: "tile-value", title: exact }, value),
      el("span", { class: "fine", title: under }, under),
    ];
    if (!action) return el("li", {}, el("div", { class: "tile" }, content));
    return el("li", {}, el("button", { type: "button", class: "tile", ...action }, content));
  };

  const only = (filter) => ({ title: "Show only these", onclick: () => Page.filters.add(filter) });

  const jump = (id) => {
    const go = () => {
      byId(id).tabIndex = -1;
      byId(id).focus({ preventScroll: true });
      byId(id).scrollIntoView({ block: "center" });
    };
    return { title: "Go to the list", onclick: go };
  };

  const percent = (part, all) => (all ? `${words.share(part / all)} complete` : "none");

  const tiles = ({ totals }) => {
    const early = ["cut", "cancelled", "failed", "broken_off"].map((kind) => [
      totals[kind] ?? 0,
      kind.replace("_", " "),
    ]);
    const ended = early.reduce((sum, [count]) => sum + count, 0);
    const parts = early.filter(([count]) => count).map(([count, kind]) => `${words.count(count)} ${kind}`);
    const tail = (value, text) => (words.isNumber(value) ? `9 of 10 ${text}` : "not known");
    const speed = words.isNumber(totals.tokens_per_second) ? `${words.rate(totals.tokens_per_second)} tok/s` : "–";
    const waits = words.isNumber(totals.waited_ms) ? `median ${words.milliseconds(totals.waited_ms)}` : "nobody";
    return [
      tile(
        "Requests",
        words.brief(totals.requests),
        percent(totals.complete ?? 0, totals.requests),
        null,
        words.count(totals.requests),
      ),
      tile(
        "Tokens written",
        words.brief(totals.tokens_out),
        `${words.brief(totals.tokens_in)} read`,
        null,
        words.count(totals.tokens_out),
      ),
      tile(
        "First token, median",
        words.milliseconds(totals.first_token_ms),
        tail(totals.first_token_ms_p90, `below ${words.milliseconds(totals.first_token_ms_p90)}`),
      ),
      tile(
        "Speed, median",
        speed,
        tail(totals.tokens_per_second_p90, `below ${words.rate(totals.tokens_per_second_p90)}`),
      ),
      tile("Waited", words.brief(totals.waited), waits),
      tile(
        "Refused",
        words.brief(totals.refused),
        percentOf(totals.refused, totals.requests),
        totals.refused ? only({ kind: "refused" }) : null,
      ),
      tile("Ended early", words.brief(ended), parts.join(", ") || "none", ended ? jump("ended") : null),
      tile(
        "Full contexts",
        words.brief(totals.context_full),
        totals.context_full ? "hit their limit" : "none",
        totals.context_full ? only({ full: "1" }) : null,
      ),
    ];
  };

  const percentOf = (part, all) => (part && all ? `${words.share(part / all)} of all` : "none");

  const build = () => {
    const summary = el("ul", { class: "tiles", "aria-label": "Totals" });
    const notes = el("p", { class: "fine notes" });
    const { stacked, spread } = Page.overTime;
    const parts = [
      stacked({
        id: "requests-over-time",
        title: "Requests",
        unit: "request",
        by: ["devices", "models", "kinds"],
        measures: [["requests", "requests"]],
      }),
      stacked({
        id: "tokens-over-time",
        title: "Tokens",
        unit: "token",
        by: ["devices", "models"],
        measures: [
          ["tokens_out", "written"],
          ["tokens_in", "read"],
        ],
      }),
    ];
    const spreads = [
      spread({
        id: "first-token",
        title: "Time to first token",
        key: "first_token_ms",
        unit: "ms",
        none: "No stream in this view produced a token.",
      }),
      spread({
        id: "speed",
        title: "Tokens per second",
        key: "tokens_per_second",
        unit: "",
        none: "No answer in this view was long enough to measure.",
      }),
      spread({
        id: "waiting",
        title: "Waiting before the model",
        key: "waited_ms",
        unit: "ms",
        none: "No request in this view waited.",
      }),
    ];
    const lists = Page.lists.all();
    const rows = [
      ["pair", parts],
      ["triple", spreads],
      ["pair", lists],
    ];
    const row = ([style, cards]) =>
      el(
        "div",
        { class: style },
        cards.map((each) => each.node),
      );
    const grid = el("div", { class: "grid" }, rows.map(row));
    const node = el("div", {}, summary, notes, grid);
    return { node, summary, notes, parts: [...parts, ...spreads, ...lists] };
  };

  const note = ({ totals }) => {
    const busiest = totals.busiest_hour;
    const texts = [
      busiest ? `Busiest hour: ${words.moment(busiest.begins)}, ${words.some(busiest.requests, "request")}.` : null,
      totals.verify ? `${words.some(totals.verify, "request")} of verify left out.` : null,
      totals.egress ? `${words.some(totals.egress, "request")} may have left this Mac.` : null,
      totals.missing_lines ? `${words.some(totals.missing_lines, "line")} missing: the log couldn't be written.` : null,
    ];
    return texts.filter(Boolean).join(" ");
  };

  const replace = (...nodes) => {
    built = null;
    before = "";
    byId("history-body").replaceChildren(...nodes);
  };

  const nothingMatches = () => {
    const names = Page.filters.words();
    const node = empty(
      "Nothing matches",
      names.length ? `No line of this period has ${names.join(", ")}.` : "No line is from this period.",
      null,
    );
    if (names.length)
      node.append(el("button", { type: "button", class: "button", onclick: Page.filters.clear }, "Remove the filters"));
    else node.append(el("p", {}, "Choose a longer period above."));
    return node;
  };

  const reachText = (answer) => {
    const made = Page.source.exported?.made;
    const texts = [
      answer.reaches ? `The logs reach back to ${words.moment(answer.reaches)}.` : null,
      made ? `This file was made ${words.full(made)}.` : null,
    ];
    return texts.filter(Boolean).join(" ");
  };

  const show = (answer) => {
    const text = JSON.stringify({ ...answer, index: null, period: answer.period.name });
    byId("reach").textContent = reachText(answer);
    if (text === before) return;
    if (answer.reaches === null) {
      replace(
        empty(
          "The log is empty",
          "Each request leaves one line. To point a tool at this Mac:",
          "remote-ollama-proxy connect",
        ),
      );
      return;
    }
    if (!answer.totals.requests) {
      replace(nothingMatches());
      return;
    }
    if (built === null) {
      const made = build();
      replace(made.node);
      built = made;
    }
    before = text;
    refill(built.summary, ...tiles(answer));
    const open = { type: "button", class: "link", onclick: () => Page.lines.open() };
    const lines = Page.source.exported ? [] : [" ", el("button", open, "Show the log lines of this view")];
    refill(built.notes, note(answer), ...lines);
    for (const part of built.parts) part.update(answer);
  };

  // While the index isn't ready: how far it is, or what to do.
  const progress = (index) => {
    if (index.state === "building") {
      const there = byId("history-body").querySelector("progress");
      const bar = there ?? el("progress", { max: 1, "aria-labelledby": "reading" });
      if (!there) {
        const heading = el("p", { class: "empty-heading", id: "reading" }, "Reading the log");
        replace(el("div", { class: "empty" }, heading, bar, el("p", { id: "read" })));
      }
      bar.value = index.total ? index.done / index.total : 0;
      byId("read").textContent = `${words.share(bar.value)}, ${words.some(index.lines ?? 0, "line")} so far`;
      return;
    }
    if (index.state === "none" && index.log) {
      const text = `The first request writes ${index.log}. To point a tool at this Mac:`;
      replace(empty("There is no log yet", text, "remote-ollama-proxy connect"));
      return;
    }
    const heading = index.state === "none" ? "No log is kept" : "The log can't be read";
    const text = index.problem ? `${index.problem[0].toUpperCase()}${index.problem.slice(1)}.` : "";
    replace(empty(heading, text, index.hint));
  };

  const failed = (error) => {
    const node = empty(
      error.message,
      error.status === 404 && Page.source.exported ? "A running dashboard has every view:" : "",
      error.hint,
    );
    if (Object.keys(Page.filters.filter).length)
      node.append(el("button", { type: "button", class: "button", onclick: Page.filters.clear }, "Remove the filters"));
    node.prepend(icon("warn"));
    replace(node);
  };

  // Ask for the present view and show it; return how many seconds to wait before asking again.
  const refresh = async () => {
    const mine = ++asked;
    byId("history-body").setAttribute("aria-busy", "true");
    try {
      const answer = await Page.source.history(Page.filters.period, Page.filters.filter);
      if (mine !== asked) return 15;
      const { index } = answer;
      if (index && index.state !== "ready") {
        progress(index);
        return index.state === "building" ? 0.5 : 5;
      }
      show(answer);
      return Page.filters.period === "hour" ? 5 : 15;
    } catch (error) {
      if (error.status === 401 || error.status === 0 || error.status === undefined) throw error;
      if (mine === asked) failed(error);
      return 15;
    } finally {
      if (mine === asked) byId("history-body").removeAttribute("aria-busy");
    }
  };

  const redraw = () => built?.parts.forEach((part) => part.redraw());

  return { redraw, refresh };
})();
