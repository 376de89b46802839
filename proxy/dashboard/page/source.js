// Where the page's data comes from: the dashboard's server, or the answers that an exported file carries.
"use strict";

Page.source = (() => {
  const KEY = "token";
  const TOKEN = /^#([A-Za-z0-9_-]{43})$/;

  const carried = document.getElementById("exported").textContent.trim();
  const exported = carried ? JSON.parse(carried) : null;

  // Move the token from the address to this tab's storage, so that no bookmark or screenshot has it.
  const takeToken = () => {
    const found = TOKEN.exec(location.hash);
    if (!found) return false;
    sessionStorage.setItem(KEY, found[1]);
    history.replaceState(null, "", location.pathname + location.search);
    return true;
  };

  class Failure extends Error {
    constructor(status, text, hint) {
      super(text);
      this.status = status;
      this.hint = hint;
    }
  }

  const ask = async (path, options = {}) => {
    const token = sessionStorage.getItem(KEY);
    if (!token) throw new Failure(401, "This page needs the link that the command printed.", "");
    let response;
    try {
      const headers = { "X-Dashboard-Token": token, ...options.headers };
      response = await fetch(path, { cache: "no-store", credentials: "omit", ...options, headers });
    } catch {
      throw new Failure(0, "The dashboard has ended.", "remote-ollama-proxy dashboard");
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok)
      throw new Failure(response.status, answer.error ?? `status ${response.status}`, answer.hint ?? "");
    return answer;
  };

  // The key of a view in an exported file: the period, and at most one filter.
  const view = (period, filter) => {
    const pairs = Object.entries(filter).map(([name, value]) => `&${name}=${encodeURIComponent(value)}`);
    return `period=${period}${pairs.join("")}`;
  };

  const history_ = async (period, filter) => {
    if (!exported) return ask(`/api/history?${view(period, filter)}`);
    const found = exported.answers[view(period, filter)];
    if (found) return found;
    throw new Failure(404, "This file doesn't have that view.", "remote-ollama-proxy dashboard");
  };

  return {
    exported,
    takeToken,
    Failure,
    history: history_,
    index: () => ask("/api/index"),
    live: () => ask("/api/live"),
    status: () => ask("/api/status"),
    lines: (period, filter, before) =>
      ask(`/api/lines?${view(period, filter)}&limit=50${before ? `&before=${encodeURIComponent(before)}` : ""}`),
    cancel: (id) =>
      ask("/api/cancel", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ id }),
      }),
  };
})();
