"use strict";

const token = document.querySelector('meta[name="svp-token"]').content;
const at = (id) => document.getElementById(id);
// Letters of classes behind the ninth; those of commands are left out.
const KEYS = [..."123456789abcdefhijklmopqrstvwxyz"];
const STRIP = 6;

let state = null;
let here = 0;
let guess = null;
let shown = -1;
// Keys come faster than disks: they wait in line, and none is lost or taken for another image.
let line = Promise.resolve();
let waiting = 0;

function problem(text) {
  at("problem").hidden = !text;
  at("problem").textContent = text || "";
}

async function ask(path, body) {
  const options = { credentials: "same-origin", cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.keepalive = true;
    options.headers = { "Content-Type": "application/json", "X-SVP-Token": token };
    options.body = JSON.stringify(body);
  }
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("svp label does not answer. Was it stopped? Nothing shown as saved is lost.");
  }
  if (!reply.ok) throw new Error((await reply.text()).trim());
  return reply.json();
}

function inLine(work) {
  waiting += 1;
  line = line.then(async () => {
    try {
      await work();
    } catch (error) {
      problem(error.message);
      at("saved").textContent = "";
    } finally {
      waiting -= 1;
    }
  });
}

function nextOpen(from) {
  const count = state.items.length;
  const find = (fits) => {
    for (let step = 1; step <= count; step += 1) {
      const place = (from + step) % count;
      if (fits(state.items[place])) return place;
    }
    return null;
  };
  const fresh = find((item) => !item.label && !item.skipped);
  return fresh !== null ? fresh : find((item) => !item.label);
}

function merge(change) {
  const place = change.item ? state.items.findIndex((item) => item.rank === change.item.rank) : -1;
  if (place >= 0) state.items[place] = change.item;
  for (const key of ["classes", "labelled", "skipped", "total", "undoable"]) state[key] = change[key];
  problem("");
  return place;
}

async function answer(label) {
  const item = state.items[here];
  merge(await ask("/answer", { rank: item.rank, label }));
  at("saved").textContent = `Saved: ${state.items[here].label}`;
  const place = nextOpen(here);
  go(place === null ? here : place);
}

async function skip() {
  merge(await ask("/skip", { rank: state.items[here].rank }));
  at("saved").textContent = "Skipped, it stays open";
  const place = nextOpen(here);
  go(place === null ? here : place);
}

async function undo() {
  const place = merge(await ask("/undo", {}));
  at("saved").textContent = place >= 0 ? "Taken back" : "Nothing to take back";
  go(place >= 0 ? place : here);
}

async function showGuess() {
  const item = state.items[here];
  const found = await ask(`/guess/${item.rank}`);
  guess = found.predicted;
  const sure = found.confidence === null ? "" : `, ${Math.round(found.confidence * 100)} %`;
  at("guess-text").textContent =
    guess === null ? "No guess: this round had no proxy." : `${guess}${sure}. Enter accepts it.`;
}

function go(place) {
  if (place !== here) at("guess-text").textContent = "";
  if (place !== here) guess = null;
  here = Math.max(0, Math.min(state.items.length - 1, place));
  draw();
}

function preload(place) {
  const item = state.items[place];
  if (item) new Image().src = `/image/${item.rank}`;
}

function draw() {
  const item = state.items[here];
  const complete = state.labelled === state.total;
  at("title").textContent = state.title;
  document.title = `${state.labelled}/${state.total} · svp label`;
  at("bar").max = state.total;
  at("bar").value = state.labelled;
  const skipped = state.skipped ? ` · ${state.skipped} skipped` : "";
  at("count").textContent = `${state.labelled} of ${state.total} labelled${skipped}`;
  at("undo").disabled = !state.undoable;
  at("rank").textContent = `Image ${item.rank} of ${state.total}`;
  const said = item.label ? `Answer: ${item.label}` : item.skipped ? "Skipped" : item.reason;
  at("reason").textContent = complete ? `${said} · All done: Finish, or look again` : said;
  if (shown !== item.rank) {
    shown = item.rank;
    at("missing").hidden = true;
    at("frame").hidden = false;
    at("picture").alt = `Image ${item.rank}`;
    at("picture").src = `/image/${item.rank}`;
  }
  drawClasses(item);
  drawStrip();
  at("done").hidden = true;
  const next = nextOpen(here);
  if (next !== null) preload(next);
}

function drawClasses(item) {
  const list = at("classes");
  list.replaceChildren(
    ...state.classes.slice(0, KEYS.length).map((name, number) => {
      const button = document.createElement("button");
      const key = document.createElement("kbd");
      const text = document.createElement("span");
      key.textContent = KEYS[number];
      text.textContent = name;
      button.type = "button";
      button.setAttribute("aria-pressed", String(item.label === name));
      button.setAttribute("aria-keyshortcuts", KEYS[number]);
      button.append(key, text);
      button.addEventListener("click", () => inLine(() => answer(name)));
      const entry = document.createElement("li");
      entry.append(button);
      return entry;
    }),
  );
}

function drawStrip() {
  const side = Math.max(1, Math.min(STRIP, Math.floor((window.innerWidth / 60 - 1) / 2)));
  const count = state.items.length;
  const first = Math.max(0, Math.min(here - side, count - 2 * side - 1));
  const places = state.items.map((_, place) => place).slice(first, first + 2 * side + 1);
  at("strip").replaceChildren(
    ...places.map((place) => {
      const item = state.items[place];
      const what = item.label ? `labelled ${item.label}` : item.skipped ? "skipped" : "open";
      const entry = document.createElement("li");
      const button = document.createElement("button");
      const picture = document.createElement("img");
      picture.src = `/thumbnail/${item.rank}`;
      picture.alt = "";
      button.type = "button";
      button.title = `Image ${item.rank}: ${what}`;
      button.setAttribute("aria-label", button.title);
      button.setAttribute("aria-current", String(place === here));
      button.tabIndex = place === here ? 0 : -1;
      button.append(picture);
      if (item.label || item.skipped) {
        const mark = document.createElement("span");
        mark.className = "mark";
        mark.textContent = item.label ? "✓" : "–";
        button.append(mark);
        button.classList.add(item.label ? "labelled" : "skipped");
      }
      button.addEventListener("click", () => inLine(async () => go(place)));
      entry.append(button);
      return entry;
    }),
  );
}

// Typing a class: what matches, and the new one as the last choice.
let choice = 0;

function matches() {
  const text = at("class-name").value.trim().replace(/\s+/g, " ");
  if (!text) return [];
  const small = text.toLowerCase();
  const found = state.classes.filter((name) => name.toLowerCase().includes(small));
  found.sort((a, b) => a.toLowerCase().indexOf(small) - b.toLowerCase().indexOf(small));
  const list = found.slice(0, 8).map((name) => ({ name, fresh: false }));
  if (!state.classes.includes(text)) list.push({ name: text, fresh: true });
  const exact = list.findIndex((one) => one.name === text && !one.fresh);
  if (exact > 0) list.unshift(...list.splice(exact, 1));
  return list;
}

function drawMatches() {
  const list = matches();
  choice = Math.max(0, Math.min(choice, list.length - 1));
  at("matches").hidden = list.length === 0;
  at("class-name").setAttribute("aria-expanded", String(list.length > 0));
  at("matches").replaceChildren(
    ...list.map((one, number) => {
      const entry = document.createElement("li");
      entry.id = `match-${number}`;
      entry.setAttribute("role", "option");
      entry.setAttribute("aria-selected", String(number === choice));
      entry.textContent = one.fresh ? `New class “${one.name}”` : one.name;
      entry.classList.toggle("new", one.fresh);
      entry.addEventListener("mousedown", (event) => {
        event.preventDefault();
        choose(one.name);
      });
      return entry;
    }),
  );
  if (list.length) at("class-name").setAttribute("aria-activedescendant", `match-${choice}`);
  else at("class-name").removeAttribute("aria-activedescendant");
}

function choose(name) {
  closeTyping();
  inLine(() => answer(name));
}

function closeTyping() {
  at("class-name").value = "";
  choice = 0;
  drawMatches();
  at("class-name").blur();
}

at("class-name").addEventListener("input", () => { choice = 0; drawMatches(); });
at("class-name").addEventListener("keydown", (event) => {
  const list = matches();
  if (event.key === "ArrowDown") choice = Math.min(choice + 1, list.length - 1);
  else if (event.key === "ArrowUp") choice = Math.max(choice - 1, 0);
  else if (event.key === "Escape") return closeTyping();
  else return undefined;
  event.preventDefault();
  return drawMatches();
});
at("typing").addEventListener("submit", (event) => {
  event.preventDefault();
  const picked = matches()[choice];
  if (picked) choose(picked.name);
});

function openHelp() {
  if (!at("help").open) at("help").showModal();
}

const COMMANDS = {
  " ": () => inLine(skip),
  u: () => inLine(undo),
  Backspace: () => inLine(undo),
  g: () => inLine(showGuess),
  n: () => at("class-name").focus(),
  ArrowLeft: () => inLine(async () => go(here - 1)),
  ArrowRight: () => inLine(async () => go(here + 1)),
  Home: () => inLine(async () => go(0)),
  End: () => inLine(async () => { const place = nextOpen(here); if (place !== null) go(place); }),
  "?": openHelp,
};

document.addEventListener("keydown", (event) => {
  if (!state || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target === at("class-name") || at("help").open) return;
  const onButton = event.target instanceof HTMLButtonElement;
  if (onButton && (event.key === " " || event.key === "Enter")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (Object.hasOwn(COMMANDS, key)) {
    event.preventDefault();
    if (!event.repeat || key.startsWith("Arrow")) COMMANDS[key]();
    return;
  }
  if (event.repeat) return;
  if (key === "Enter") {
    inLine(async () => { if (guess !== null) await answer(guess); });
    return;
  }
  const number = KEYS.indexOf(key);
  // The class is looked up when its turn comes: the key before may have added one.
  if (number >= 0) inLine(async () => {
    if (number < state.classes.length) await answer(state.classes[number]);
  });
});

at("picture").addEventListener("load", () => {
  at("picture").classList.toggle("small", at("picture").naturalWidth <= 128);
});
at("picture").addEventListener("error", async () => {
  const rank = state.items[here].rank;
  let said = "It cannot be shown.";
  try { said = await (await fetch(`/image/${rank}`)).text(); } catch { /* the line above stands */ }
  at("frame").hidden = true;
  at("missing").hidden = false;
  at("missing").textContent = `Image ${rank} cannot be shown: ${said} Skip it.`;
});
// After a click keys shall go on: a focused button would take Space for itself.
document.addEventListener("click", (event) => {
  const button = event.target instanceof Element && event.target.closest("button");
  if (button && event.detail > 0) button.blur();
});
at("skip").addEventListener("click", () => inLine(skip));
at("undo").addEventListener("click", () => inLine(undo));
at("guess").addEventListener("click", () => inLine(showGuess));
at("back").addEventListener("click", COMMANDS.ArrowLeft);
at("forward").addEventListener("click", COMMANDS.ArrowRight);
at("help-open").addEventListener("click", openHelp);
at("finish").addEventListener("click", () => inLine(async () => {
  const end = await ask("/finish", {});
  document.querySelector("nav").hidden = true;
  document.querySelector("aside").hidden = true;
  document.querySelector("figure").hidden = true;
  at("done").hidden = false;
  at("done").querySelector("h2").textContent = "Everything is saved.";
  at("done-text").textContent = `${end.labelled} of ${end.total} labelled. You may close this page.`;
  state = null;
}));
window.addEventListener("resize", () => { if (state) drawStrip(); });
window.addEventListener("beforeunload", (event) => { if (waiting) event.preventDefault(); });

inLine(async () => {
  state = await ask("/state");
  const open = nextOpen(-1);
  here = open === null ? 0 : open;
  draw();
});
