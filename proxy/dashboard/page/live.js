// What goes on now: requests, models, refusals. Rows are kept between polls, so that focus and pointer stay on them.
"use strict";

Page.live = (() => {
  const { byId, el, empty, icon, keyed, say, setText, time } = Page.parts;
  const words = Page.words;
  const KEPT = 60; // values of a sparkline, one a second
  const SMOOTH = 5; // values that the shown speed is the mean of
  const QUIET = 10000; // milliseconds between two announcements of refusals
  const STEPS = ["upload", "queue", "load", "wait", "content"];
  const STEP_OF = { head: 0, upload: 0, queue: 1, load: 2, connect: 3, request: 3, wait: 3, content: 4, done: 4 };

  const speeds = new Map(); // id → {events, now, values}
  let seen = null; // refusals that were there before
  let announced = 0;
  let latest = null;

  const nameOf = (request) => request.device ?? request.peer ?? "unknown device";

  const measure = (answer) => {
    const ids = new Set(answer.requests.map((each) => each.id));
    for (const id of speeds.keys()) if (!ids.has(id)) speeds.delete(id);
    for (const { id, events, phase } of answer.requests) {
      const before = speeds.get(id);
      const speed = before ?? { values: [] };
      if (before && answer.now > before.now && phase === "content") {
        speed.values.push(Math.max(0, (events - before.events) / (answer.now - before.now)));
        if (speed.values.length > KEPT) speed.values.shift();
      }
      speeds.set(id, Object.assign(speed, { events, now: answer.now }));
    }
  };

  const mean = (values) => (values.length ? values.reduce((sum, each) => sum + each, 0) / values.length : null);

  const track = () => {
    const node = el(
      "span",
      { class: "track", "aria-hidden": "true" },
      STEPS.map(() => el("i")),
    );
    const update = (phase) => {
      const at = STEP_OF[phase] ?? 0;
      [...node.children].forEach((step, each) => (step.className = each < at ? "past" : each === at ? "here" : ""));
    };
    return { node, update };
  };

  const mark = (ids, on) => {
    for (const row of document.querySelectorAll("#requests [data-id]")) {
      row.classList.toggle("ahead", on && ids.includes(row.dataset.id));
    }
  };

  const begun = (request) => {
    const after = request.first_token;
    return words.isNumber(after) ? `first token after ${words.seconds(after)}` : "";
  };

  // Why a request waits. The names of those ahead of it say more than their number.
  const reason = (request, others) => {
    const found = request.behind.map((id) => others.get(id)).filter(Boolean);
    const named = (each) => `${nameOf(each)}${each.model === request.model ? "" : ` (${each.model ?? "no model"})`}`;
    const ahead = found.slice(0, 3).map(named).join(", ");
    const more = found.length > 3 ? ` and ${words.count(found.length - 3)} more` : "";
    const why = request.why === request.state ? "" : (request.why ?? "");
    return ahead ? why.replace(/behind \d+ requests?/, () => `behind ${ahead}${more}`) : why;
  };

  const askToCancel = (request) => {
    const dialog = byId("ask");
    const same = latest.requests.filter((each) => each.id === request.id).length;
    const model = request.model ? [" for ", el("b", {}, request.model)] : "";
    const what = `${nameOf(request)}${request.model ? ` for ${request.model}` : ""}`;
    const stop = async () => {
      dialog.close();
      try {
        const { ended } = await Page.source.cancel(request.id);
        const others = ended > 1 ? ` ${words.count(ended)} requests had its id, and all of them ended.` : "";
        say(ended ? `Cancelled the request of ${what}.${others}` : `The request of ${what} had ended already.`);
      } catch (error) {
        say(`It wasn't cancelled. ${error.message}`);
      }
    };
    dialog.replaceChildren(
      el("h2", { id: "ask-heading" }, "Cancel this request?"),
      el("p", {}, "The request of ", el("b", {}, nameOf(request)), model, "."),
      same > 1 ? el("p", {}, `${words.count(same)} requests have the id ${request.id}. All of them end.`) : "",
      el("p", { class: "fine" }, "The client gets an error. Ollama stops working on it."),
      el(
        "div",
        { class: "buttons" },
        el("button", { type: "button", class: "button", onclick: () => dialog.close(), autofocus: true }, "Keep it"),
        el("button", { type: "button", class: "button danger", onclick: stop }, "Cancel the request"),
      ),
    );
    dialog.showModal();
  };

  const cell = (title, style, ...content) => el("td", { role: "cell", class: style, "data-title": title }, ...content);

  const requestRow = (first) => {
    let request = first;
    const [device, user, model, path] = [
      el("b"),
      el("span", { class: "fine" }),
      el("b"),
      el("span", { class: "fine" }),
    ];
    const [state, why, line] = [el("span"), el("span", { class: "fine why" }), track()];
    const [speed, age, spark] = [el("span", { class: "speed" }), el("span"), Page.charts.sparkline()];
    const cancel = el(
      "button",
      { type: "button", class: "button small", onclick: () => askToCancel(request) },
      "Cancel",
    );
    const node = el(
      "tr",
      {
        role: "row",
        "data-id": first.id,
        onpointerenter: () => mark(request.behind, true),
        onpointerleave: () => mark([], false),
      },
      cell("Device", "who", device, user),
      cell("Model", "which", model, path),
      cell("State", "doing", el("span", { class: "state" }, line.node, state), why),
      cell("Speed", "number pace", spark.node, speed),
      cell("Time", "number age", age),
      cell("", "act", cancel),
    );
    const update = (given) => {
      request = given;
      setText(device, nameOf(given));
      setText(user, given.user ?? (given.device ? "" : "no name known"));
      setText(model, given.model ?? "–");
      setText(path, given.path ?? "");
      for (const cut of [device, user, model, path]) cut.title = cut.textContent; // whole, where it has no room
      setText(state, given.state);
      line.update(given.phase);
      const others = new Map(latest.requests.map((each) => [each.id, each]));
      setText(why, [reason(given, others), begun(given)].filter(Boolean).join(" · "));
      const { values } = speeds.get(given.id);
      spark.update(values, KEPT);
      spark.node.classList.toggle("none", values.length < 2);
      spark.node.parentNode.classList.toggle("none", values.length === 0);
      setText(speed, values.length ? `${words.rate(mean(values.slice(-SMOOTH)))} tok/s` : "–");
      setText(age, words.seconds(given.seconds));
      cancel.setAttribute(
        "aria-label",
        `Cancel the request of ${nameOf(given)}${given.model ? ` for ${given.model}` : ""}`,
      );
    };
    return { node, update };
  };

  const requestTable = () => {
    const cancel = el("span", { class: "unseen" }, "Cancel");
    const titles = { who: "Device", which: "Model", doing: "State", "number pace": "Speed", "number age": "Time" };
    Object.assign(titles, { act: cancel });
    const head = Object.entries(titles).map(([style, title]) =>
      el("th", { scope: "col", role: "columnheader", class: style }, title),
    );
    const body = el("tbody", { role: "rowgroup" });
    const caption = el("caption", { class: "unseen" }, "Requests in progress, in the order of arrival");
    const top = el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, head));
    const table = el("table", { class: "rows", role: "table" }, caption, top, body);
    return { node: el("div", { class: "scroll" }, table), body };
  };

  const modelItem = () => {
    const [name, state, memory, uses, stay] = [
      el("b"),
      el("span", { class: "badge" }),
      el("span"),
      el("span", { class: "fine" }),
      el("span", { class: "fine" }),
    ];
    const node = el(
      "li",
      {},
      el("div", { class: "between" }, name, state),
      memory,
      el("div", { class: "between" }, stay, uses),
    );
    const update = (model) => {
      setText(name, model.name);
      const loading = model.state === "loading";
      setText(
        state,
        loading ? `loading${words.isNumber(model.seconds) ? `, ${words.seconds(model.seconds)}` : ""}` : model.state,
      );
      state.classList.toggle("busy", loading);
      const context = words.isNumber(model.context) ? `context ${words.count(model.context)}` : null;
      setText(
        memory,
        [words.isNumber(model.memory) ? words.size(model.memory) : null, context].filter(Boolean).join(" · ") ||
          "size unknown",
      );
      const busy = [model.sent ? `${model.sent} running` : null, model.waiting ? `${model.waiting} waiting` : null];
      setText(uses, busy.filter(Boolean).join(", ") || (loading ? "" : "idle"));
      const leaves = model.unloads ? words.until(model.unloads, latest.now) : "";
      setText(stay, loading ? "" : model.kept ? "stays loaded" : leaves || "unloads at an unknown time");
    };
    return { node, update };
  };

  const refusalItem = (refusal) => {
    const device = refusal.device ?? refusal.peer ?? null;
    const filter = { reason: refusal.reason ?? null, device };
    const about = `Show only ${refusal.reason ?? "refusals"}${device ? ` of ${device}` : ""} in the history`;
    const rule = el(
      "button",
      { type: "button", class: "link", title: about, onclick: () => Page.filters.add(filter) },
      refusal.reason ?? "refused",
    );
    const what =
      [refusal.method, refusal.path].filter((each) => typeof each === "string").join(" ") ||
      "no request that could be read";
    const node = el(
      "li",
      { class: seen !== null ? "new" : null },
      el("div", { class: "between" }, el("b", {}, device ?? "unknown"), time(refusal.time, { exact: true })),
      el("div", { class: "path" }, what),
      el(
        "div",
        { class: "between" },
        rule,
        el("span", { class: "fine clip", title: refusal.user_agent ?? null }, refusal.user_agent ?? ""),
      ),
    );
    return { node, update: () => {} };
  };

  const keyOf = (refusal) => `${refusal.time} ${refusal.id ?? ""} ${refusal.path ?? ""}`;

  const announce = (refusals) => {
    const keys = refusals.map(keyOf);
    const fresh = seen === null ? [] : refusals.filter((each) => !seen.has(keyOf(each)));
    const quiet = Date.now() - announced < QUIET;
    if (seen !== null && fresh.length && quiet) return; // the next announcement counts these too
    seen = new Set(keys);
    if (!fresh.length) return;
    announced = Date.now();
    const [{ method, path, device, peer, reason }] = fresh;
    const one = `${method ?? ""} ${path ?? ""} of ${device ?? peer ?? "an unknown device"}, rule ${reason ?? "unknown"}`;
    say(fresh.length === 1 ? `Refused: ${one}.` : `${words.count(fresh.length)} new refusals, the last: ${one}.`);
  };

  let places = null;
  const prepare = () => {
    const requests = requestTable();
    const lists = { models: el("ul", { class: "items" }), refused: el("ul", { class: "items" }) };
    const nothing = {
      requests: empty(
        "No request is in progress",
        "Requests appear here while they wait, load a model or stream. To point a tool at this Mac:",
        "remote-ollama-proxy connect",
      ),
      models: empty(
        "No model is in memory",
        "The next request loads one. To load one now:",
        "remote-ollama-proxy warm MODEL",
      ),
      refused: empty(
        "Nothing was refused",
        "A request that isn't on the allowlist appears here, with the rule.",
        null,
      ),
    };
    byId("requests").append(requests.node, nothing.requests);
    byId("models").append(lists.models, nothing.models);
    byId("refused").append(lists.refused, nothing.refused);
    places = { requests, lists, nothing };
  };

  const swap = (node, nothing, some) => {
    node.hidden = !some;
    nothing.hidden = some;
  };

  const counted = (requests) => {
    const waiting = requests.filter((each) => each.phase === "queue").length;
    return requests.length ? `${requests.length} in all${waiting ? `, ${waiting} waiting` : ""}` : "";
  };

  // While the proxy isn't running, advice on what the next request does would be wrong.
  const quiet = (running) => {
    const { requests, models } = places.nothing;
    for (const each of [requests, models]) each.classList.toggle("bare", !running);
    setText(models.firstChild, running ? "No model is in memory" : "Not known while the proxy isn't running");
  };

  let noticed = "";
  const notices = (proxy) => {
    const notice = (level, text, hint) =>
      el("div", { class: `notice ${level}` }, icon(level), el("p", {}, text, hint ? [" ", el("code", {}, hint)] : ""));
    const shown = proxy.running
      ? (proxy.troubles ?? []).map((text) => notice("warn", text))
      : [notice("fail", `The proxy isn't running: ${proxy.why}.`, proxy.hint)];
    const text = shown.map((node) => node.textContent).join("\n");
    if (text !== noticed) byId("notices").replaceChildren(...shown);
    noticed = text;
  };

  const counters = ({ proxy }) => {
    if (!proxy.running) return "";
    const {
      requests = 0,
      waited = 0,
      loads = 0,
      loads_failed: failed = 0,
      turned_away: away = 0,
      cancelled = 0,
    } = proxy.counters ?? {};
    const parts = [
      `Since the proxy started at ${words.moment(proxy.started * 1000)}: ${words.some(requests, "request")} for a model`,
      `${words.count(waited)} waited`,
      `${words.some(loads, "load")}${failed ? ` (${words.count(failed)} failed)` : ""}`,
      away ? `${words.count(away)} turned away` : null,
      cancelled ? `${words.count(cancelled)} cancelled` : null,
      `${words.some(proxy.connections ?? 0, "open connection")}`,
    ];
    return parts.filter(Boolean).join(" · ");
  };

  const show = (answer) => {
    if (places === null) prepare();
    latest = answer;
    measure(answer);
    keyed(places.requests.body, answer.requests, (each) => each.id, requestRow);
    swap(places.requests.node, places.nothing.requests, answer.requests.length > 0);
    keyed(places.lists.models, answer.models, (each) => each.name, modelItem);
    swap(places.lists.models, places.nothing.models, answer.models.length > 0);
    keyed(places.lists.refused, answer.refusals, keyOf, refusalItem);
    swap(places.lists.refused, places.nothing.refused, answer.refusals.length > 0);
    setText(byId("requests-count"), counted(answer.requests));
    quiet(answer.proxy.running);
    notices(answer.proxy);
    setText(byId("counters"), counters(answer));
    Page.status.proxy(answer.proxy, answer.now);
    announce(answer.refusals);
    document.title = answer.requests.length ? `(${answer.requests.length}) remote-ollama-proxy` : "remote-ollama-proxy";
  };

  return { show };
})();
