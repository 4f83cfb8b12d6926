// The page: what the reader does, what the server offers, and what is shown of both.

import { microphoneObstacle } from "./audio.js";
import { seconds, span } from "./figures.js";
import { KeyRing } from "./key.js";
import { Run } from "./run.js";
import { surfaces } from "./surfaces.js";
import { Announcer, Take, tellTimes } from "./transcript.js";

const at = (id) => document.getElementById(id);
const WHOLE = { listening: "The transcript comes when you stop.", sending: "The recording is sent.", finishing: "The recording is transcribed." };
const offer = { surfaces: [], models: [], requireKey: false, known: false };
const takes = new Set();
const announcer = new Announcer(at("said"));
const keys = new KeyRing(at("ask"), at("key"), at("wrong"), at("no-key"));
let run = null;
let following = true;

// ---- what the server offers

async function learn() {
  const root = await fetchJson("/");
  offer.surfaces = surfaces.filter((surface) => root.surfaces?.includes(surface.listed ?? surface.name));
  offer.requireKey = root.require_key === true;
  if (offer.requireKey && !(await keys.get())) throw new Error("This server is open only to those who have a key. Reload the page to give it.");
  offer.models = await learnModels();
  offer.known = true;
  showOffer();
}

async function learnModels() {
  for (;;) {
    const headers = offer.requireKey ? { Authorization: `Bearer ${await keys.get()}` } : {};
    const answer = await fetch("/v1/models", { headers, cache: "no-store" });
    if (answer.ok) return (await answer.json()).data;
    if (answer.status !== 401) throw new Error(`The server does not say which models it has (status ${answer.status}).`);
    if (!(await keys.again("The server does not know this key."))) throw new Error("Without a key nothing can be transcribed here.");
  }
}

async function fetchJson(path) {
  let answer;
  try {
    answer = await fetch(path, { headers: { Accept: "application/json" }, cache: "no-store" });
  } catch {
    throw new Error("The server does not answer. See whether it is still running, then reload the page.");
  }
  if (!answer.ok) throw new Error(`The server answers with status ${answer.status}.`);
  return answer.json();
}

function showOffer() {
  const usable = offer.surfaces.filter((surface) => !surface.closed(offer));
  fill(at("surface"), offer.surfaces.map((surface) => [surface.name, surface.label]));
  for (const option of at("surface").options) option.disabled = !usable.some((surface) => surface.name === option.value);
  at("surface").value = usable[0]?.name ?? "";
  fill(at("model"), offer.models.map((model) => [model.id, model.id]));
  showModel();
  if (usable.length === 0) {
    complain("This server has no surface that a page can use. Start it with --surfaces yap,realtime.");
    at("speak").disabled = at("choose").disabled = true;
  }
}

function showModel() {
  const model = chosenModel();
  const standard = model?.delay_ms;
  const delays = model?.delays_ms?.length ? model.delays_ms : [standard];
  fill(at("delay"), delays.map((ms) => [String(ms), `${ms} ms${ms === standard ? " (the server's)" : ""}`]));
  at("delay").value = String(standard);
  at("delay").disabled = delays.length < 2;
  fill(at("language"), [["", "whichever is spoken"], ...(model?.languages ?? []).map((code) => [code, languageName(code)])]);
  at("caveat").hidden = !model?.caveat;
  at("caveat").textContent = model?.caveat ? sentence(model.caveat) : "";
  showChoice();
}

function showChoice() {
  const surface = chosenSurface();
  const model = chosenModel();
  at("delay-field").hidden = !surface?.delays;
  at("language-field").hidden = !(surface?.languages && model?.languages?.length > 1);
  const closed = offer.surfaces.filter((each) => each.closed(offer)).map((each) => `${each.label}: ${each.closed(offer)}`);
  at("surface-about").textContent = [surface?.remark, ...closed].filter(Boolean).join("\n");
  at("pace-field").hidden = surface?.file === true;
  at("chosen-surface").textContent = surface ? `${surface.label} · ` : "";
  at("chosen-rest").textContent = [model?.id.split("/").pop(), surface?.delays && `${at("delay").value}\u00a0ms`].filter(Boolean).join(" · ");
  at("pace-about").textContent =
    surface?.drops && at("pace").value === "fast" ? "Here the server leaves out audio that waits too long; it says so when it does." : "";
  at("forget").hidden = !keys.known;
}

const chosenSurface = () => offer.surfaces.find((surface) => surface.name === at("surface").value);
const chosenModel = () => offer.models.find((model) => model.id === at("model").value);

function fill(select, pairs) {
  select.replaceChildren(...pairs.map(([value, label]) => new Option(label, value)));
}

function languageName(code) {
  try {
    return new Intl.DisplayNames(["en"], { type: "language" }).of(code);
  } catch {
    return code;
  }
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

// ---- a run

async function begin(source) {
  if (run && !run.over) return;
  complain("");
  at("setup").open = false;
  const obstacle = source.file ? "" : microphoneObstacle();
  if (obstacle) return complain(obstacle);
  try {
    if (!offer.known) await learn();
  } catch (error) {
    showState("failed");
    return complain(error.message);
  }
  const surface = chosenSurface();
  if (!surface) return undefined;
  const key = surface.keyed(offer) ? await keys.get() : "";
  if (key === null) return undefined;
  if (run && !run.over) return undefined; // begun while the key was asked for
  const options = {
    key,
    model: at("model").value,
    delayMs: surface.delays && !at("delay").disabled ? Number(at("delay").value) : undefined,
    language: at("language-field").hidden ? "" : at("language").value,
  };
  const about = [source.file?.name ?? "Microphone", surface.label, surface.delays && `${at("delay").value} ms`].filter(Boolean).join(" · ");
  const take = new Take(at("takes"), about);
  takes.add(take);
  at("empty").hidden = true;
  following = true;
  document.body.dataset.used = "";
  for (const id of ["first", "lag", "audio"]) at(id).textContent = "–";
  run = new Run(surface, options, source, shower(take, source));
  follow();
  showButtons();
  return run.start();
}

/** What a run has to say, shown in its take and in the figures. */
function shower(take, source) {
  const live = () => !source.fast && !run.surface.file;
  return {
    state(name) {
      if (run.surface.file) take.tentative(WHOLE[name] ?? "");
      showState(name);
    },
    level: (value) => at("level").style.setProperty("--level", Math.min(1, 4 * value).toFixed(3)),
    note: (text, kind) => take.note(text, kind),
    text(text, words) {
      take.append(text, words, run.sent);
      announcer.add(text);
      if (live() && words.length > 0) at("lag").textContent = span(run.sent - take.heardUntil);
      follow();
    },
    tentative(text) {
      take.tentative(text);
      follow();
    },
    figures({ sent, first }) {
      at("audio").textContent = seconds(sent);
      at("first").textContent = span(first);
    },
    done({ text, words, audioSeconds, sent, first, toFinal }) {
      take.finish(text, words, sent);
      announcer.say();
      const lag = live() ? take.medianLag : undefined;
      if (lag !== undefined) at("lag").textContent = span(lag);
      const figures = [["First token", span(first)], ["Lag, median", span(lag)], ["To final", span(toFinal)],
        ["Words", String(take.words.length)], ["Audio", seconds(audioSeconds ?? sent, 2)]]; // prettier-ignore
      take.summarise(figures.filter(([, value]) => value !== "–"), actions(take));
      follow();
      showButtons();
    },
    failed({ kind, sentence: told }) {
      take.finish(undefined, undefined, run.sent);
      announcer.say();
      if (!take.text.trim()) {
        takes.delete(take);
        take.remove();
        at("empty").hidden = takes.size > 0;
      } else {
        take.note(kind === "cancelled" ? "Cancelled." : "This transcript ends early.");
        take.summarise([], actions(take));
      }
      showButtons();
      if (kind === "key") askAgain(told, source);
      else if (told) complain(told);
    },
  };
}

async function askAgain(told, source) {
  showState("ready");
  if (await keys.again(told)) await begin(source);
}

function actions(take) {
  const name = `transcript-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}`;
  return [
    ["Copy", (button) => copy(take.text.trim(), button)],
    ["Download", () => save(`${take.text.trim()}\n`, `${name}.txt`, "text/plain")],
  ];
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // no clipboard without HTTPS: the old way
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.textContent = "Copied";
  at("time").textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

function save(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ---- what is shown round the transcript

function showState(state) {
  at("state").textContent = state;
  document.body.dataset.state = state;
  showButtons();
}

function showButtons() {
  const active = run !== null && !run.over;
  at("speak").textContent = !active ? "Speak" : run.state === "finishing" || run.state === "connecting" ? "Cancel" : "Stop";
  at("choose").hidden = active;
  for (const id of ["surface", "model", "language", "pace"]) at(id).disabled = active;
  at("delay").disabled = active || at("delay").options.length < 2;
}

function complain(text) {
  at("notice-text").textContent = text;
  at("notice").hidden = !text;
  measureDock();
}

/** The transcript ends above the dock, however high that is. */
function measureDock() {
  document.documentElement.style.setProperty("--dock", `${document.querySelector(".dock").offsetHeight}px`);
}

const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 48;

function follow() {
  if (following) scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
  showNewest();
}

function showNewest() {
  at("newest").hidden = following || atEnd();
}

// ---- what the reader does

at("speak").addEventListener("click", () => {
  if (!run || run.over) begin({});
  else if (run.state === "finishing" || run.state === "connecting") run.cancel();
  else run.stop();
});
at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => {
  const [file] = at("file").files;
  if (file) begin({ file, fast: at("pace").value === "fast" });
  at("file").value = "";
});
at("surface").addEventListener("change", showChoice);
at("model").addEventListener("change", showModel);
at("delay").addEventListener("change", showChoice);
at("pace").addEventListener("change", showChoice);
at("forget").addEventListener("click", () => {
  keys.forget();
  showChoice();
});
at("dismiss").addEventListener("click", () => {
  complain("");
  at("speak").focus();
});
at("newest").addEventListener("click", () => {
  following = true;
  follow();
});
addEventListener("scroll", () => {
  following = atEnd();
  showNewest();
});
addEventListener("resize", measureDock);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || at("ask").open) return;
  if (at("setup").open) {
    at("setup").open = false;
    at("setup").querySelector("summary").focus();
  } else if (run && !run.over && run.state !== "finishing") run.stop();
});
document.addEventListener("pointerdown", (event) => {
  if (!at("setup").contains(event.target)) at("setup").open = false;
});

let dragged = 0;
const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
const dragging = (change) => {
  dragged = Math.max(0, dragged + change);
  document.body.classList.toggle("dropping", dragged > 0);
};
addEventListener("dragenter", (event) => carriesFile(event) && dragging(1));
addEventListener("dragleave", (event) => carriesFile(event) && dragging(-1));
addEventListener("dragover", (event) => carriesFile(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFile(event)) return;
  event.preventDefault();
  dragging(-dragged);
  if (run && !run.over) complain("One at a time: stop what is under way, then drop the recording again.");
  else if (event.dataTransfer.files.length > 1) complain("One recording at a time, please.");
  else begin({ file: event.dataTransfer.files[0], fast: at("pace").value === "fast" });
});

tellTimes(at("transcript"), takes, at("tip"), at("time"));
new ResizeObserver(measureDock).observe(document.querySelector(".dock"));
learn().then(
  () => showState("ready"),
  (error) => {
    showState("failed");
    complain(error.message);
  },
);
