// The lines of the access log behind a number, in a dialog.
"use strict";

Page.lines = (() => {
  const { byId, el, icon, time } = Page.parts;
  const words = Page.words;
  const PERIODS = { hour: "last hour", day: "last day", week: "last week", all: "whole log" };

  const text = (value) =>
    typeof value === "string" ? value : value === undefined || value === null ? "" : JSON.stringify(value);

  const outcome = (record) => text(record.reason) || text(record.ended) || text(record.verdict);

  const tokens = (record) => {
    if (record.tokens_in === undefined && record.tokens_out === undefined) return "";
    return `${text(record.tokens_in) || "?"} → ${text(record.tokens_out) || "?"}`;
  };

  const spent = (value) => (words.isNumber(value) ? words.milliseconds(value) : text(value));

  // On a phone the rows are no table any more, so they have roles. Their order there is in page.css.
  const COLUMNS = [
    ["Time", "", null],
    ["Device", "", (record) => text(record.device) || text(record.peer)],
    ["Request", "", (record) => `${text(record.method)} ${text(record.path)}`.trim()],
    ["Status", "number", (record) => text(record.status)],
    ["Model", "", (record) => text(record.model)],
    ["Tokens", "number wide", tokens],
    ["First", "number wide", (record) => spent(record.first_byte_ms)],
    ["Total", "number wide", (record) => spent(record.total_ms)],
    ["Ended", "", outcome],
    ["User agent", "wide", (record) => text(record.user_agent)],
  ];

  const rows = ({ record, file }) => {
    const whole = el("tr", { role: "row", class: "whole", hidden: true });
    const unfold = (event) => {
      whole.hidden = !whole.hidden;
      event.currentTarget.setAttribute("aria-expanded", String(!whole.hidden));
      if (whole.hidden || whole.firstChild) return;
      const pre = el("pre", { tabindex: "0", "aria-label": "The whole line" }, JSON.stringify(record, null, 2));
      whole.append(el("td", { role: "cell", colspan: COLUMNS.length }, pre, el("p", { class: "fine" }, `in ${file}`)));
    };
    const about = { type: "button", class: "link", "aria-expanded": "false", title: "Show the whole line" };
    const first = el(
      "th",
      { role: "rowheader", scope: "row" },
      el("button", { ...about, onclick: unfold }, time(text(record.time), { exact: true })),
    );
    const others = COLUMNS.slice(1).map(([, style, cell]) =>
      el("td", { role: "cell", class: style || null, title: cell(record) }, cell(record)),
    );
    return [el("tr", { role: "row" }, first, others), whole];
  };

  const table = () => {
    const head = COLUMNS.map(([title, style]) =>
      el("th", { role: "columnheader", scope: "col", class: style || null }, title),
    );
    const body = el("tbody", { role: "rowgroup" });
    const caption = el("caption", { class: "unseen" }, "Lines of the access log, the newest first");
    const top = el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, head));
    return { body, node: el("table", { role: "table", class: "log" }, caption, top, body) };
  };

  // Show the lines of the present period and filter, and of `more` filters.
  const open = async (more = {}) => {
    const given = Object.entries({ ...Page.filters.filter, ...more }).filter(
      ([, value]) => value !== null && value !== undefined,
    );
    const [period, filter] = [Page.filters.period, Object.fromEntries(given)];
    const dialog = byId("lines");
    const { node, body } = table();
    const state = el("p", { class: "fine", role: "status" }, "Reading the log …");
    const older = el("button", { type: "button", class: "button", hidden: true }, "Older lines");
    const close = el(
      "button",
      { type: "button", class: "button", "aria-label": "Close", onclick: () => dialog.close() },
      icon("remove"),
    );
    const about = [PERIODS[period], ...Page.filters.words(filter)].join(" · ");
    dialog.replaceChildren(
      el(
        "div",
        { class: "lines-head" },
        el("h2", { id: "lines-heading" }, "Log lines"),
        el("p", { class: "fine" }, about),
        close,
      ),
      el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Log lines" }, node),
      el("div", { class: "lines-foot" }, state, older),
    );
    let [next, shown] = [null, 0];
    const load = async () => {
      older.disabled = true;
      try {
        const answer = await Page.source.lines(period, filter, next);
        body.append(...answer.lines.flatMap(rows));
        shown += answer.lines.length;
        next = answer.next;
        state.textContent = shown
          ? `${words.some(shown, "line")}${next ? ", there are older ones" : ", no older ones"}`
          : "No line matches.";
      } catch (error) {
        state.textContent = [error.message, error.hint].filter(Boolean).join(" ");
      }
      older.disabled = false;
      older.hidden = next === null;
    };
    older.addEventListener("click", load);
    dialog.showModal();
    await load();
  };

  // A click next to the dialog closes it, as Escape does.
  byId("lines").addEventListener("click", (event) => {
    if (event.target === byId("lines")) byId("lines").close();
  });

  // A button that opens the lines of a row; an exported file has no lines.
  const button = (more, about) => {
    if (Page.source.exported) return null;
    const named = { type: "button", class: "link", "aria-label": `Log lines: ${about}` };
    return el("button", { ...named, onclick: () => open(more) }, "lines");
  };

  return { button, open };
})();
