// The three states in the header, and the findings of `status`.
"use strict";

Page.status = (() => {
  const { byId, el, icon, refill, say, setText } = Page.parts;
  const words = Page.words;
  const ORDER = ["fail", "warn", "skip", "pass"];
  const COUNTED = { skip: "skipped", pass: "passed" };

  const states = {};
  const state = (name) => {
    if (states[name]) return states[name];
    const [place, text] = [el("span", { class: "mark" }, icon("wait")), el("span", { class: "detail" }, "looking …")];
    const node = el("li", { class: "wait" }, place, el("b", {}, name), el("span", { class: "unseen" }, ": "), text);
    byId("states").append(node);
    states[name] = { node, place, text, outcome: null };
    return states[name];
  };

  const set = (name, outcome, text, long = text) => {
    const found = state(name);
    setText(found.text, text);
    found.node.title = long;
    if (found.outcome === outcome) return;
    if (found.outcome !== null) say(`${name}: ${text}.`);
    found.outcome = outcome;
    found.node.className = outcome;
    found.place.replaceChildren(icon(outcome));
  };

  const prepare = () => ["Tailscale", "Ollama", "Proxy"].forEach(state);

  const proxy = (given, now) => {
    if (!given.running) return set("Proxy", "fail", "not running", given.why);
    return set("Proxy", "pass", `${given.version ?? ""} up ${words.seconds(Math.max(0, now - given.started))}`.trim());
  };

  const ollama = (services) => {
    const found = services.find((each) => each.name === "ollama");
    if (!found || found.running === null) return set("Ollama", "skip", "unknown");
    return found.running
      ? set("Ollama", "pass", `running ${found.version ?? ""}`.trim())
      : set("Ollama", "fail", "not running");
  };

  const tailscale = ({ outcome, detail }) => {
    if (outcome === "unknown" || outcome === "skip") return set("Tailscale", "skip", "unknown", detail);
    return set("Tailscale", outcome, { pass: "connected", warn: "look below", fail: "see below" }[outcome], detail);
  };

  const finding = ({ name, outcome, detail, hint }) =>
    el(
      "li",
      { class: outcome },
      icon(outcome),
      el(
        "div",
        {},
        el("b", {}, name),
        el("span", { class: "unseen" }, ` (${outcome})`),
        " ",
        el("span", {}, detail),
        hint ? el("p", {}, el("code", {}, hint)) : null,
      ),
    );

  let before = "";
  const show = (answer) => {
    ollama(answer.services);
    tailscale(answer.tailscale);
    const text = JSON.stringify(answer.findings);
    if (text === before) return;
    before = text;
    const sorted = [...answer.findings].sort((one, other) => ORDER.indexOf(one.outcome) - ORDER.indexOf(other.outcome));
    const [urgent, calm] = [
      sorted.filter((each) => ["fail", "warn"].includes(each.outcome)),
      sorted.filter((each) => !["fail", "warn"].includes(each.outcome)),
    ];
    const counts = ORDER.map((outcome) => [outcome, calm.filter((each) => each.outcome === outcome).length]).filter(
      ([, count]) => count,
    );
    const sum = counts.map(([outcome, count]) => `${count} ${COUNTED[outcome]}`).join(", ");
    const open = byId("findings").querySelector("details")?.open ?? false;
    const folded = el(
      "details",
      {},
      el("summary", {}, `${urgent.length ? "The others" : "All is well"}: ${sum}`),
      el("ul", { class: "checks" }, calm.map(finding)),
    );
    folded.open = open;
    const heading = byId("findings-heading");
    refill(
      byId("findings"),
      heading,
      ...(urgent.length ? [el("ul", { class: "checks" }, urgent.map(finding))] : []),
      ...(calm.length ? [folded] : []),
    );
  };

  return { prepare, proxy, show };
})();
