// Pieces that pages are made of: elements, icons, lists that keep their nodes, tables. Text is only ever text.
"use strict";

Page.parts = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const ICONS = {
    pass: "M3.5 8.5l3 3 6-7",
    warn: "M8 2.5l6 11H2zM8 6.5v3.2M8 11.6v.2",
    fail: "M4 4l8 8M12 4l-8 8",
    skip: "M4 8h8",
    wait: "M8 4.5V8l2.5 1.5M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0z",
    remove: "M4.5 4.5l7 7M11.5 4.5l-7 7",
  };

  // el("p", {class: "fine"}, "text", node): attributes that are null or false are left out; on… are listeners.
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (typeof value === "function") node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  };

  // A name that may be broken where a reader expects it: after a dot, a dash and the like.
  const name = (text) => text.split(/(?<=[-_./:@])/).flatMap((part, at) => (at ? [el("wbr"), part] : [part]));

  const svg = (tag, attributes) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };

  const icon = (name) => {
    const node = svg("svg", { class: `icon ${name}`, viewBox: "0 0 16 16", "aria-hidden": "true" });
    node.append(svg("path", { d: ICONS[name] }));
    return node;
  };

  const setText = (node, text) => {
    if (node.textContent !== text) node.textContent = text;
  };

  const time = (text, options) => {
    const node = el("time", { datetime: text ?? "" }, Page.words.moment(text, options));
    if (text) node.title = Page.words.full(text);
    return node;
  };

  // Make the children of a node those of `items`, and keep the nodes of those that stay: focus stays with them.
  const remembered = new WeakMap();
  const keyed = (parent, items, key, make) => {
    const before = remembered.get(parent) ?? new Map();
    const after = new Map();
    const met = new Map(); // clients choose the ids of their requests, so several items may have the same key
    let place = null;
    for (const item of items) {
      const same = met.get(key(item)) ?? 0;
      met.set(key(item), same + 1);
      const name = JSON.stringify([key(item), same]);
      const made = before.get(name) ?? make(item);
      made.update(item);
      after.set(name, made);
      const next = place === null ? parent.firstChild : place.nextSibling;
      if (made.node !== next) parent.insertBefore(made.node, next);
      place = made.node;
    }
    for (const [name, made] of before) if (!after.has(name)) made.node.remove();
    remembered.set(parent, after);
  };

  const empty = (heading, text, command) =>
    el(
      "div",
      { class: "empty" },
      el("p", { class: "empty-heading" }, heading),
      text ? el("p", {}, text) : null,
      command ? el("p", {}, el("code", {}, command)) : null,
    );

  // A table from columns {title, cell(row), number, wide} and rows. `wide` columns are left out on narrow screens.
  const table = (caption, columns, rows) => {
    const style = (column) => [column.number ? "number" : "", column.wide ? "wide" : ""].join(" ").trim() || null;
    const head = columns.map((column) => el("th", { scope: "col", class: style(column) }, column.title));
    const line = (row) =>
      columns.map((column, at) =>
        el(at ? "td" : "th", { class: style(column), scope: at ? null : "row" }, column.cell(row)),
      );
    return el(
      "table",
      {},
      el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, head)),
      el(
        "tbody",
        {},
        rows.map((row) => el("tr", {}, line(row))),
      ),
    );
  };

  // A folded table, which is only filled when it is opened.
  const numbers = (caption, make) => {
    const folded = el("details", { class: "numbers" }, el("summary", {}, "Numbers"));
    folded.append(el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption }));
    const fill = () => {
      if (folded.open) refill(folded.lastChild, make());
    };
    folded.addEventListener("toggle", fill);
    return { node: folded, fill };
  };

  // A group of radio buttons that looks like one control.
  const choice = (name, options, chosen, changed) =>
    options.map(([value, text]) => {
      const input = el("input", { type: "radio", name, value, onchange: () => changed(value) });
      input.checked = value === chosen;
      return el("label", {}, input, el("span", {}, text));
    });

  let shut = null;
  const say = (text) => {
    const node = document.getElementById("says");
    node.replaceChildren(el("p", {}, text));
    clearTimeout(shut);
    shut = setTimeout(() => node.replaceChildren(), 8000);
  };

  // Replace what a node holds. A button that had the focus and is there again, has it again.
  const refill = (node, ...children) => {
    const called = (each) => each.getAttribute("aria-label") ?? each.textContent;
    const before = node.contains(document.activeElement) ? document.activeElement : null;
    node.replaceChildren(...children);
    if (before === null || before === node) return;
    const same = [...node.querySelectorAll(before.tagName)].find((each) => called(each) === called(before));
    same?.focus({ preventScroll: true });
  };

  const byId = (id) => document.getElementById(id);

  return { byId, choice, el, empty, icon, keyed, name, numbers, refill, say, setText, svg, table, time };
})();
