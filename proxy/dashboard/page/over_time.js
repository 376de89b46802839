// The cards with charts: what is shown over time by device, model or outcome, and distributions.
"use strict";

Page.overTime = (() => {
  const { choice, el, numbers, refill, table } = Page.parts;
  const words = Page.words;
  const BY = { devices: ["device", "by device"], models: ["model", "by model"], kinds: ["kind", "by outcome"] };
  const REST = { devices: "other devices", models: "other models" };

  const card = (id, title, note) => {
    const heading = el("h3", { id: `${id}-heading` }, title);
    const node = el("section", { class: "card", id, "aria-labelledby": `${id}-heading` });
    const head = el("div", { class: "card-head" }, heading);
    node.append(head, ...(note ? [el("p", { class: "fine" }, note)] : []));
    return { node, head };
  };

  const total = (values) => values.reduce((sum, each) => sum + (each ?? 0), 0);

  // `values` names the numbers that are stacked; `kinds` says by which lists; `more` are other choices of numbers.
  const stacked = ({ id, title, unit, by, measures }) => {
    let [chosen, measure, answer] = [by[0], measures[0][0], null];
    const { node, head } = card(id, title);
    const named = (each) => (chosen === "kinds" ? each.name.replace("_", " ") : (each.name ?? REST[chosen]));
    const get = () => {
      const rows = (answer.series[chosen] ?? []).filter((each) => total(each[measure]) > 0);
      const slots = Page.charts.slots(
        chosen,
        rows.map((each) => each.name),
      );
      const series = rows.map((each, at) => ({ label: named(each), slot: slots[at], values: each[measure], of: each }));
      return { times: answer.series.times, step: answer.period.step, series };
    };
    const chart = Page.charts.overTime(title, get);
    const legend = el("ul", { class: "legend" });
    const folded = numbers(`${title}, numbers`, () => {
      const { times, step, series } = get();
      const time = { title: "From", cell: (at) => Page.charts.bucketText(times[at], step) };
      const columns = series.map((each) => ({
        title: each.label,
        number: true,
        cell: (at) => words.count(each.values[at] ?? 0),
      }));
      const used = [...times.keys()].filter((at) => series.some((each) => each.values[at]));
      return used.length
        ? table(title, [time, ...columns], used)
        : el("p", { class: "fine" }, "Nothing in this period.");
    });
    const show = () => {
      const { series } = get();
      const sum = total(series.map((each) => total(each.values)));
      chart.label(`${title} ${BY[chosen][1]}: ${words.some(sum, unit)}. Arrow keys read the bars.`);
      const item = (each) => {
        const content = [
          Page.charts.swatch(each.slot),
          el("span", {}, each.label),
          el("b", {}, words.brief(total(each.values))),
        ];
        if (each.of.name === null) return el("li", {}, el("span", { class: "legend-item" }, content));
        const only = () => Page.filters.add({ [BY[chosen][0]]: each.of.name });
        const about = { class: "legend-item", type: "button", title: `Show only ${each.label}`, onclick: only };
        return el("li", {}, el("button", about, content));
      };
      refill(legend, ...series.map(item));
      chart.draw();
      folded.fill();
    };
    const switcher = (name, options, now, set) => {
      const group = el("fieldset", { class: "choice small" }, el("legend", { class: "unseen" }, `${title}: ${name}`));
      const changed = (value) => {
        set(value);
        show();
      };
      group.append(...choice(`${id}-${name}`, options, now, changed));
      return group;
    };
    const switchers = el("div", { class: "switchers" });
    if (measures.length > 1) switchers.append(switcher("what", measures, measure, (value) => (measure = value)));
    const lists = by.map((each) => [each, BY[each][1].replace("by ", "")]);
    switchers.append(switcher("by", lists, chosen, (value) => (chosen = value)));
    head.append(switchers);
    node.append(chart.node, legend, folded.node);
    const update = (given) => {
      answer = given;
      show();
    };
    return { node, update, redraw: () => answer && show() };
  };

  // A distribution with its median, from `key` of the answer.
  const spread = ({ id, title, key, unit, none }) => {
    let answer = null;
    const { node, head } = card(id, title);
    const text = unit === "ms" ? (edge) => (edge < 1000 ? `${edge} ms` : `${edge / 1000} s`) : (edge) => String(edge);
    const get = () => ({ ...answer.distributions[key], median: answer.totals[key] });
    const chart = Page.charts.distribution(title, get, text);
    const middle = el("p", { class: "fine" });
    const nothing = el("p", { class: "nothing" }, none);
    const folded = numbers(`${title}, numbers`, () => {
      const { edges, counts } = get();
      const columns = [
        { title: "From", cell: (at) => text(edges[at]) },
        { title: "To", cell: (at) => text(edges[at + 1]) },
        { title: "Requests", number: true, cell: (at) => words.count(counts[at]) },
      ];
      return table(title, columns, [...counts.keys()]);
    });
    head.append(middle);
    node.append(chart.node, nothing, folded.node);
    const show = () => {
      const { counts, median } = get();
      const some = counts.length > 0;
      chart.node.hidden = folded.node.hidden = middle.hidden = !some;
      nothing.hidden = some;
      if (!some) return;
      const half = unit === "ms" ? words.milliseconds(median) : `${words.rate(median)} tokens/s`;
      middle.replaceChildren("median ", el("b", {}, half));
      chart.label(`${title}: ${words.some(total(counts), "request")}, median ${half}. Arrow keys read the bars.`);
      chart.draw();
      folded.fill();
    };
    const update = (given) => {
      answer = given;
      show();
    };
    return { node, update, redraw: () => answer && show() };
  };

  return { card, spread, stacked };
})();
