// The page works without this. With it, the page follows the numbers, and the days of a chart can
// be read one by one with the pointer or the arrow keys.
"use strict";
(() => {
  const EVERY_MS = 10000;
  const connection = document.getElementById("connection");
  const news = document.getElementById("news");
  const parts = (root) => [...root.querySelectorAll("[data-live]")];
  // Each part as the server wrote it: what is done to the page here is no news.
  const written = new Map(parts(document).map((part) => [part.id, part.outerHTML]));

  // -- Charts ------------------------------------------------------------------------------------

  function enliven(root) {
    for (const plot of root.querySelectorAll(".bars")) follow(plot);
  }

  function follow(plot) {
    const days = [...plot.querySelectorAll(".day")];
    const labels = days.map((day) => day.querySelector("title").textContent);
    const readout = plot.closest("figure").querySelector(".readout");
    const resting = readout.textContent;
    const past = Math.max(0, days.findLastIndex((day) => day.querySelector(".used")));
    days.forEach((day) => day.querySelector("title").remove());
    const attributes = {
      role: "slider", tabindex: "0", "aria-roledescription": "chart",
      "aria-valuemin": "1", "aria-valuemax": String(days.length),
    };
    for (const [name, value] of Object.entries(attributes)) plot.setAttribute(name, value);

    function show(number) {
      plot.querySelector(".day.on")?.classList.remove("on");
      const day = number ?? past;
      plot.dataset.day = number ?? "";
      if (number !== null) days[number].classList.add("on");
      readout.textContent = number === null ? resting : labels[number];
      plot.setAttribute("aria-valuenow", String(day + 1));
      plot.setAttribute("aria-valuetext", labels[day]);
    }
    const current = () => (plot.dataset.day ? Number(plot.dataset.day) : null);
    const keys = {
      ArrowLeft: (day) => day - 1, ArrowDown: (day) => day - 1,
      ArrowRight: (day) => day + 1, ArrowUp: (day) => day + 1,
      Home: () => 0, End: () => days.length - 1,
    };
    plot.addEventListener("keydown", (event) => {
      if (!keys[event.key]) return;
      event.preventDefault();
      const day = keys[event.key](current() ?? past);
      show(Math.min(days.length - 1, Math.max(0, day)));
    });
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const day = Math.floor((event.clientX - box.left) / box.width * days.length);
      show(Math.min(days.length - 1, Math.max(0, day)));
    });
    plot.addEventListener("focus", () => show(current() ?? past));
    plot.addEventListener("pointerleave", () => { if (plot !== document.activeElement) show(null); });
    plot.addEventListener("blur", () => show(null));
    plot.showDay = show;
    show(null);
  }

  // -- New numbers -------------------------------------------------------------------------------

  function take(fresh) {
    const before = levels();
    for (const part of parts(fresh)) {
      if (written.get(part.id) === part.outerHTML) continue;
      written.set(part.id, part.outerHTML);
      exchange(document.getElementById(part.id), document.importNode(part, true));
    }
    const now = levels();
    const changes = [...now].filter(([id, { level }]) => before.has(id) && before.get(id).level !== level);
    if (changes.length) news.textContent = changes.map(([, { text }]) => text).join(". ");
  }

  function levels() {
    return new Map([...document.querySelectorAll("[data-level]")].map(
      (meter) => [meter.id, { level: meter.dataset.level, text: meter.dataset.news }],
    ));
  }

  function exchange(old, fresh) {
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const day = focused?.dataset.day;
    for (const open of old.querySelectorAll("details[open]")) {
      const same = fresh.querySelector(`#${CSS.escape(open.id)}`);
      if (same) same.open = true;
    }
    old.replaceWith(fresh);
    enliven(fresh);
    if (!focused) return;
    const same = focused.id && document.getElementById(focused.id);
    (same || document.getElementById("content")).focus({ preventScroll: true });
    if (same && day) same.showDay?.(Number(day));
  }

  function say(text) {
    if (connection.textContent !== text) connection.textContent = text;
    connection.hidden = !text;
  }

  let timer = 0;
  let asked = Date.now();

  async function refresh() {
    asked = Date.now();
    try {
      const answer = await fetch(location.href, {
        headers: { Accept: "text/html" }, signal: AbortSignal.timeout(EVERY_MS),
      });
      if (answer.status === 401 || answer.redirected) {
        say("You are signed out: load the page again to sign in.");
      } else if (!answer.ok) {
        throw new Error(answer.status);
      } else {
        take(new DOMParser().parseFromString(await answer.text(), "text/html"));
        say("");
      }
    } catch {
      say("The connection is lost: these numbers may be old. Trying again.");
    }
    wait();
  }

  function wait() {
    clearTimeout(timer);
    if (document.hidden) return;
    timer = setTimeout(refresh, Math.max(0, asked + EVERY_MS - Date.now()));
  }

  enliven(document);
  document.getElementById("watching").hidden = false;
  document.getElementById("by-hand").hidden = true;
  document.addEventListener("visibilitychange", wait);
  wait();
})();
