// Begins: takes the token, starts the polls, and says so when the dashboard has gone.
"use strict";

Page.start = (() => {
  const { byId, el, empty, setText } = Page.parts;
  const AGAIN = 5; // seconds until the next try while the dashboard doesn't answer

  let stopped = false;
  const polls = [];

  const banner = (text, command) => {
    const node = byId("banner");
    node.hidden = !text;
    node.replaceChildren(...(text ? [el("span", {}, text, " "), ...(command ? [el("code", {}, command)] : [])] : []));
    document.body.classList.toggle("stale", Boolean(text));
  };

  const stop = (text) => {
    stopped = true;
    for (const part of ["now", "history", "parts"]) byId(part).hidden = true;
    byId("states").replaceChildren();
    byId("only").replaceChildren(
      el("h2", {}, "This page needs its link"),
      empty(
        text,
        "The link holds a token, so that nobody else on this machine can read this page. Start the dashboard, and open the link that it prints:",
        "remote-ollama-proxy dashboard",
      ),
    );
    byId("only").hidden = false;
  };

  const failed = (error) => {
    if (error.status === 401) stop(error.message);
    else if (error.status === 0) banner("The dashboard has ended. Start it again:", "remote-ollama-proxy dashboard");
    else banner(error.message, error.hint);
    if (!(error instanceof Page.source.Failure)) throw error;
  };

  // Do `work` again and again while the page can be seen. It returns the seconds to wait.
  const poll = (work) => {
    let [timer, running, again] = [null, false, false];
    const run = async () => {
      clearTimeout(timer);
      if (stopped || document.hidden) return;
      again = running; // asked for meanwhile: the answer to come may be one to an old question
      if (running) return;
      running = true;
      let seconds = AGAIN;
      try {
        seconds = await work();
        banner("");
      } catch (error) {
        failed(error);
      } finally {
        running = false;
        if (!stopped) timer = setTimeout(run, again ? 0 : seconds * 1000);
        again = false;
      }
    };
    polls.push(run);
    return run;
  };

  const pulse = (text) => {
    setText(byId("pulse"), text);
    byId("pulse").classList.toggle("paused", text === "paused");
  };

  const live = async () => {
    const answer = await Page.source.live();
    Page.live.show(answer);
    pulse("live");
    return 1;
  };

  // The findings take the dashboard's time, so the history is asked for first.
  let shown = null;
  const first = new Promise((done) => (shown = done));
  const history = () => Page.history.refresh().finally(shown);

  const status = async () => {
    await first;
    Page.status.show(await Page.source.status());
    return 15;
  };

  const begin = () => {
    stopped = false;
    byId("only").hidden = true;
    byId("history").hidden = false;
    const exported = Page.source.exported;
    byId("now").hidden = byId("parts").hidden = Boolean(exported);
    if (!exported) Page.status.prepare();
    for (const run of polls) run();
  };

  const start = () => {
    const exported = Page.source.exported;
    Page.source.takeToken();
    const again = poll(history);
    if (!exported) {
      poll(live);
      poll(status);
    }
    Page.filters.start(again);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) for (const run of polls) run();
      else pulse("paused");
    });
    window.addEventListener("hashchange", () => {
      if (!exported && Page.source.takeToken()) begin();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", Page.history.redraw);
    begin();
  };

  return start;
})();

Page.start();
