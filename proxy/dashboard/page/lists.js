// The lists of the history. A click on a name filters everything; `lines` opens the log lines behind a row.
"use strict";

Page.lists = (() => {
  const { el, name, refill, table, time } = Page.parts;
  const FEW = 12; // rows that are shown at first
  const words = Page.words;
  const only = (text, filter) =>
    el(
      "button",
      { type: "button", class: "link name", title: `Show only ${text}`, onclick: () => Page.filters.add(filter) },
      name(text),
    );

  const bar = (part, text) => {
    const fill = el("i");
    fill.style.width = `${Math.max(1, Math.min(100, part * 100))}%`;
    return el(
      "span",
      { class: "barred" },
      el("span", { class: "bar", "aria-hidden": "true" }, fill),
      el("b", {}, text),
    );
  };

  const counted = (rows, key = "requests") => {
    const most = Math.max(1, ...rows.map((each) => each[key] ?? 0));
    return { title: "Requests", number: true, cell: (each) => bar((each[key] ?? 0) / most, words.count(each[key])) };
  };

  const last = { title: "Last", number: true, wide: true, cell: (each) => time(each.last) };

  const lines = (filterOf, textOf) => ({
    title: el("span", { class: "unseen" }, "Log lines"),
    number: true,
    cell: (each) => Page.lines.button(filterOf(each), textOf(each)) ?? "",
  });

  // `columns(rows)` gives the columns; `note(answer)` a text under the title; a list without rows says `none`.
  const list = ({ id, title, key, note, none, columns, optional = false, wide = false }) => {
    const { node } = Page.overTime.card(id, title);
    node.classList.toggle("full", wide);
    const [under, place, left] = [
      el("p", { class: "fine" }),
      el("div", { class: "scroll" }),
      el("p", { class: "fine" }),
    ];
    let [rows, whole] = [[], false];
    const show = () => {
      const some = whole ? rows : rows.slice(0, FEW);
      refill(place, rows.length ? table(title, columns(rows), some) : el("p", { class: "nothing" }, none));
      fold.hidden = rows.length <= FEW;
      fold.textContent = whole ? `Show the first ${FEW} rows` : `Show all ${rows.length} rows`;
    };
    const turn = () => {
      whole = !whole;
      show();
    };
    const fold = el("button", { type: "button", class: "link", onclick: turn });
    node.append(under, place, fold, left);
    const update = (answer) => {
      rows = answer[key] ?? [];
      node.hidden = optional && rows.length === 0;
      const text = note?.(answer) ?? "";
      under.replaceChildren(text);
      under.hidden = !text;
      show();
      const more = answer.more?.[key] ?? 0;
      left.textContent = more
        ? `${words.some(more, "row")} more in the log. A filter or a shorter period shows them.`
        : "";
      left.hidden = !more;
    };
    return { node, update, redraw: () => {} };
  };

  const spent = [
    { title: "Tokens read", number: true, wide: true, cell: (each) => words.brief(each.tokens_in) },
    { title: "Tokens written", number: true, cell: (each) => words.brief(each.tokens_out) },
    { title: "First token", number: true, wide: true, cell: (each) => words.bin(each.first_token_ms, "ms") },
    { title: "Tokens/s", number: true, wide: true, cell: (each) => words.bin(each.tokens_per_second) },
    { title: "Refused", number: true, wide: true, cell: (each) => words.count(each.refused) },
    last,
  ];

  const device = {
    title: "Device",
    cell: (each) => (each.device === null ? "unknown" : only(each.device, { device: each.device })),
  };
  const model = {
    title: "Model",
    cell: (each) => (each.model === null ? "–" : only(each.model, { model: each.model })),
  };
  const rule = { title: "Rule", cell: (each) => only(each.reason, { reason: each.reason }) };

  const reach = (answer) =>
    answer.reaches
      ? `The logs reach back to ${words.moment(answer.reaches)}. A device counts as new if its earlier lines are gone.`
      : "";

  const who = (each) =>
    el("div", {}, only(each.name, { device: each.name }), each.user ? el("div", { class: "fine name" }, name(each.user)) : null);

  // Devices or models: who or what the requests of a view are of.
  const ranking = (id, title, key, kind, none, cell) =>
    list({
      id,
      title,
      key,
      none,
      wide: true,
      columns: (rows) => [
        { title: kind, cell },
        counted(rows),
        ...spent,
        lines(
          (each) => ({ [kind.toLowerCase()]: each.name }),
          (each) => each.name,
        ),
      ],
    });

  // Requests counted by what `columns` say. `filterOf` a row gives its log lines, `textOf` names them.
  const tally = (id, title, key, columns, filterOf, textOf, more) =>
    list({
      id,
      title,
      key,
      columns: (rows) => [...columns, counted(rows), last, lines(filterOf, textOf)],
      ...more,
    });

  const ofRule = [(each) => ({ reason: each.reason, device: each.device }), (each) => `${each.reason} of ${each.device}`];
  const ofBoth = (filter, what) => [
    (each) => ({ [filter]: "1", device: each.device, model: each.model }),
    (each) => `${what} of ${each.device}`,
  ];
  const seldom = { optional: true, none: "" };

  const all = () => [
    ranking("devices", "Devices", "devices", "Device", "No device in this view.", who),
    ranking("used-models", "Models", "models", "Model", "No request in this view named a model.", (each) =>
      only(each.name, { model: each.name }),
    ),
    tally("refusals", "Refusals by rule and device", "refusals", [rule, device], ...ofRule, {
      none: "Nothing was refused in this view.",
    }),
    tally(
      "ended",
      "Who ended requests early",
      "ended",
      [
        { title: "Ended by", cell: (each) => each.party },
        { title: "When", cell: (each) => only(each.ended, { ended: each.ended }) },
        { title: "Reason", wide: true, cell: (each) => each.reason ?? "–" },
      ],
      (each) => ({ ended: each.ended }),
      (each) => each.ended,
      { none: "Every request in this view ended well." },
    ),
    list({
      id: "first-seen",
      title: "New devices",
      key: "first_seen",
      none: "No new device in this view.",
      note: reach,
      columns: () => [
        device,
        { title: "User", wide: true, cell: (each) => name(each.user ?? "–") },
        { title: "First seen", number: true, cell: (each) => time(each.time) },
        lines(
          (each) => ({ device: each.device }),
          (each) => each.device,
        ),
      ],
    }),
    tally("full-contexts", "Full contexts", "context_full", [device, model], ...ofBoth("full", "full contexts"), {
      none: "No answer filled its model's context.",
      note: (answer) =>
        answer.context_full?.length
          ? "Ollama dropped the beginning of these prompts, or stopped the answer early. A larger num_ctx helps."
          : "",
    }),
    tally("egress", "May have left this Mac", "egress", [device, model], ...ofBoth("egress", "egress"), seldom),
    tally("denied", "Refused by access rules", "denied", [rule, device], ...ofRule, seldom),
    tally(
      "dropped",
      "Options that the proxy removed",
      "dropped",
      [{ title: "Option", cell: (each) => only(each.option, { dropped: each.option }) }, device],
      (each) => ({ dropped: each.option, device: each.device }),
      (each) => `${each.option} of ${each.device}`,
      seldom,
    ),
  ];

  return { all };
})();
