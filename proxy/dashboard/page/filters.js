// Which part of the history is shown: a period and filters. Both stay in the address, so that a reload keeps them.
"use strict";

Page.filters = (() => {
  const { byId, choice, el, icon } = Page.parts;
  const PERIODS = [
    ["hour", "Hour"],
    ["day", "Day"],
    ["week", "Week"],
    ["all", "All"],
  ];
  const NAMES = ["device", "model", "reason", "ended", "kind", "full", "egress", "dropped"];
  const FLAGS = { full: "full contexts", egress: "may have left this Mac" };
  const TITLES = { device: "device", model: "model", reason: "rule", ended: "ended by", kind: "outcome", dropped: "option" };

  let period = "day";
  let filter = {};
  let changed = () => {};

  const read = () => {
    const given = new URLSearchParams(location.search);
    period = PERIODS.some(([name]) => name === given.get("period")) ? given.get("period") : "day";
    filter = Object.fromEntries(NAMES.filter((name) => given.has(name)).map((name) => [name, given.get(name)]));
  };

  const write = () => {
    const query = new URLSearchParams({ period, ...filter });
    try {
      history.pushState(null, "", `${location.pathname}?${query}`);
    } catch {
      // A file's address can't always be changed. Then a reload begins with a day and no filter.
    }
  };

  const title = (name, value) => (name in FLAGS ? FLAGS[name] : `${TITLES[name]} ${value}`);

  const words = (given = filter) => Object.entries(given).map(([name, value]) => title(name, value));

  const show = () => {
    for (const input of document.querySelectorAll("input[name=period]")) input.checked = input.value === period;
    const chip = ([name, value]) => {
      const text = title(name, value);
      const label = name in FLAGS ? [el("b", {}, text)] : [el("span", {}, TITLES[name]), el("b", {}, value)];
      const about = { type: "button", class: "chip", "aria-label": `Remove the filter ${text}`, title: text };
      return el("li", {}, el("button", { ...about, onclick: () => remove(name) }, label, icon("remove")));
    };
    const chips = Object.entries(filter).map(chip);
    if (chips.length > 1) {
      chips.push(el("li", {}, el("button", { type: "button", class: "link", onclick: clear }, "Remove all")));
    }
    byId("filters").replaceChildren(...chips);
    byId("filters").hidden = chips.length === 0;
  };

  const set = (nextPeriod, nextFilter) => {
    const same = nextPeriod === period && JSON.stringify(nextFilter) === JSON.stringify(filter);
    if (same) return;
    [period, filter] = [nextPeriod, nextFilter];
    write();
    show();
    changed();
  };

  const add = (more) => {
    const given = Object.fromEntries(Object.entries(more).filter(([, value]) => value !== null && value !== undefined));
    set(period, { ...filter, ...given });
    byId("history-heading").scrollIntoView({ block: "nearest" });
    const shown = words();
    Page.parts.say(shown.length ? `The history shows only: ${shown.join(", ")}.` : "The history shows everything.");
  };

  const remove = (name) => {
    const left = { ...filter };
    delete left[name];
    set(period, left);
    (byId("filters").querySelector("button") ?? document.querySelector("input[name=period]:checked")).focus();
  };

  const clear = () => {
    set(period, {});
    document.querySelector("input[name=period]:checked").focus();
  };

  const start = (whenChanged) => {
    changed = whenChanged;
    read();
    byId("periods").append(...choice("period", PERIODS, period, (value) => set(value, filter)));
    window.addEventListener("popstate", () => {
      read();
      show();
      changed();
    });
    show();
  };

  return {
    add,
    clear,
    start,
    words,
    get period() {
      return period;
    },
    get filter() {
      return filter;
    },
  };
})();
