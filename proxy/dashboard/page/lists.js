// The lists of the history. A click on a name filters everything; `lines` opens the log lines behind a row.
"use strict";

Page.lists = (() => {
  const { el, refill, table, time } = Page.parts;
  const words = Page.words;
  const KINDS = {
    complete: "complete",
    cut: "cut",
    cancelled: "cancelled",
    failed: "failed",
    refused: "refused",
    redirected: "redirected",
    preflight: "preflight",
    broken_off: "broken off",
  };

  const only = (text, filter) =>
    el(
      "button",
      { type: "button", class: "link name", title: `Show only ${text}`, onclick: () => Page.filters.add(filter) },
      text,
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

  const last = { title: "Last", number: true, cell: (each) => time(each.last) };

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
    node.append(under, place, left);
    const update = (answer) => {
      const rows = answer[key] ?? [];
      node.hidden = optional && rows.length === 0;
      const text = note?.(answer) ?? "";
      under.replaceChildren(text);
      under.hidden = !text;
      refill(place, rows.length ? table(title, columns(rows), rows) : el("p", { class: "nothing" }, none));
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
    { ...last, wide: true },
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
      ? `The logs reach back to ${words.moment(answer.reaches)}. A device that came before that and came again counts as new.`
      : "";

  const who = (each) =>
    el("div", {}, only(each.name, { device: each.name }), each.user ? el("div", { class: "fine" }, each.user) : null);

  const ofRule = (each) => ({ reason: each.reason, device: each.device });

  const all = () => [
    list({
      id: "devices",
      title: "Devices",
      key: "devices",
      none: "No device in this view.",
      wide: true,
      columns: (rows) => [
        { title: "Device", cell: who },
        counted(rows),
        ...spent,
        lines(
          (each) => ({ device: each.name }),
          (each) => each.name,
        ),
      ],
    }),
    list({
      id: "used-models",
      title: "Models",
      key: "models",
      none: "No request in this view named a model.",
      wide: true,
      columns: (rows) => [
        { title: "Model", cell: (each) => only(each.name, { model: each.name }) },
        counted(rows),
        ...spent,
        lines(
          (each) => ({ model: each.name }),
          (each) => each.name,
        ),
      ],
    }),
    list({
      id: "refusals",
      title: "Refusals by rule and device",
      key: "refusals",
      none: "Nothing was refused in this view.",
      columns: (rows) => [
        rule,
        device,
        counted(rows),
        last,
        lines(ofRule, (each) => `${each.reason} of ${each.device}`),
      ],
    }),
    list({
      id: "ended",
      title: "Who ended requests early",
      key: "ended",
      none: "Every request in this view ended well.",
      columns: (rows) => [
        { title: "Ended by", cell: (each) => each.party },
        { title: "When", cell: (each) => only(each.ended, { ended: each.ended }) },
        { title: "Reason", wide: true, cell: (each) => each.reason ?? "–" },
        counted(rows),
        last,
        lines(
          (each) => ({ ended: each.ended }),
          (each) => each.ended,
        ),
      ],
    }),
    list({
      id: "first-seen",
      title: "New devices",
      key: "first_seen",
      none: "No new device in this view.",
      note: reach,
      columns: () => [
        device,
        { title: "User", wide: true, cell: (each) => each.user ?? "–" },
        { title: "First seen", number: true, cell: (each) => time(each.time) },
        lines(
          (each) => ({ device: each.device }),
          (each) => `${each.device}`,
        ),
      ],
    }),
    list({
      id: "full-contexts",
      title: "Full contexts",
      key: "context_full",
      none: "No answer filled its model's context.",
      note: (answer) =>
        answer.context_full?.length
          ? "Ollama dropped the beginning of these prompts, or stopped the answer early. A larger num_ctx helps."
          : "",
      columns: (rows) => [
        device,
        model,
        counted(rows),
        last,
        lines(
          (each) => ({ full: "1", device: each.device, model: each.model }),
          (each) => `full contexts of ${each.device}`,
        ),
      ],
    }),
    list({
      id: "egress",
      title: "May have left this Mac",
      key: "egress",
      optional: true,
      none: "",
      columns: (rows) => [
        device,
        model,
        counted(rows),
        last,
        lines(
          (each) => ({ egress: "1", device: each.device, model: each.model }),
          (each) => `egress of ${each.device}`,
        ),
      ],
    }),
    list({
      id: "denied",
      title: "Refused by access rules",
      key: "denied",
      optional: true,
      none: "",
      columns: (rows) => [
        rule,
        device,
        counted(rows),
        last,
        lines(ofRule, (each) => `${each.reason} of ${each.device}`),
      ],
    }),
    list({
      id: "dropped",
      title: "Options that the proxy removed",
      key: "dropped",
      optional: true,
      none: "",
      columns: (rows) => [{ title: "Option", cell: (each) => each.option }, device, counted(rows), last],
    }),
  ];

  return { KINDS, all };
})();
