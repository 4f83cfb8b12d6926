// The server's protocols, each behind the same few calls: what a surface needs, and a channel that takes audio and tells what was heard.
//
// A surface has
//   name, label         its own name, and what the reader sees
//   listed              the name under which the server lists it, where that is another
//   rate                samples a second
//   file                it takes recordings as they are, and all text comes at the end
//   delays, languages   it can be told one
//   drops               it leaves out audio that waits too long
//   keyed(offer)        whether it demands a key
//   remark              what the reader should know of it before choosing it
//   closed(offer)       why a browser cannot use it; empty when it can
//   open({key, model, delayMs, language, recording}, heard), which returns a channel:
//     send(pcm)   the next PCM16          room()    resolves when more may be sent
//     finish()    no more audio comes     abort()   forget it all
//
// `heard` is told ready() once audio may come; then append(text, words), tentative(text) and note(sentence, kind) as it goes; and at the end
// either final({text, words, audioSeconds}) or fault({kind, sentence}), kind being "key" or "other". Nothing comes after the end, or after
// abort(); send(), room() and finish() come only after ready().

import { base64, wav } from "./pcm.js";

const MOST_UNSENT_BYTES = 1 << 20;
const ROOM_POLL_MS = 20;
const SESSION_BYTES_PER_MS = 800; // 25 times real time; servers drop what is beyond 1000
const SESSION_MOST_WAITING = 50; // frames; servers drop the oldest of more than 1000

const yap = {
  name: "yap",
  label: "Envelope",
  rate: 16000,
  delays: true,
  drops: true,
  keyed: () => true,
  closed: () => "",
  open({ key, model, delayMs }, heard) {
    const request = identifier();
    const ids = { session_id: "page", request_id: request };
    let ending = null;
    let dropped = 0;
    const socket = connect(`/api/asr-streaming?api_key=${encodeURIComponent(key)}`, [], heard, {
      frame({ type, request_id, payload }) {
        switch (type) {
          case "session.created":
            say("session.update", { model, delay_ms: delayMs, tentative: true });
            say("input_audio_buffer.commit", { final: false });
            heard.ready();
            break;
          case "token":
            heard.append(payload.text, payload.words ?? []);
            break;
          case "tentative":
            heard.tentative(payload.text);
            break;
          case "final":
            ending = { text: payload.normalized_text, words: payload.words ?? [] };
            break;
          case "done":
            if (request_id !== request) break;
            socket.over();
            heard.final({ ...ending, audioSeconds: payload.audio_seconds });
            break;
          case "status":
            dropped += payload.dropped_seconds ?? 0;
            heard.note(yapStatus(payload, dropped), payload.kind);
            break;
          case "error":
            socket.over();
            heard.fault(yapFault(payload));
            break;
        }
      },
    });
    const say = (type, payload) => socket.send(JSON.stringify({ type, ...ids, payload }));
    return {
      ...socket,
      send: (pcm) => say("input_audio_buffer.append", { audio: base64(pcm) }),
      finish: () => say("input_audio_buffer.commit", { final: true }),
    };
  },
};

function yapStatus({ kind, seconds }, dropped) {
  if (kind === "overload_drop") return `The server could not keep up and left out ${dropped.toFixed(1)} s of audio.`;
  if (kind === "speech_without_text") return `There is speech, but no text has come of it for ${seconds.toFixed(0)} s.`;
  return `The server says: ${kind}.`;
}

function yapFault({ code, message }) {
  if (code === "authentication_failed") return wrongKey;
  if (code === "server_at_capacity") return fault(`The server is at capacity: ${message}.`);
  return fault(`The server could not go on: ${message} (${code}).`);
}

const realtime = {
  name: "realtime",
  label: "vLLM realtime",
  rate: 16000,
  delays: true,
  keyed: () => false,
  closed: headerKey,
  open({ model, delayMs }, heard) {
    const socket = connect("/v1/realtime", [], heard, {
      frame(event) {
        switch (event.type) {
          case "session.created":
            say({ type: "session.update", model, delay_ms: delayMs });
            say({ type: "input_audio_buffer.commit", final: false });
            heard.ready();
            break;
          case "transcription.delta":
            if (event.delta) heard.append(event.delta, []);
            break;
          case "transcription.done":
            socket.over();
            heard.final({ text: event.text, words: event.words ?? [], audioSeconds: event.audio_seconds });
            break;
          case "error":
            socket.over();
            heard.fault(fault(`The server could not go on: ${event.error} (${event.code ?? "no code"}).`));
            break;
        }
      },
    });
    const say = (event) => socket.send(JSON.stringify(event));
    return {
      ...socket,
      send: (pcm) => say({ type: "input_audio_buffer.append", audio: base64(pcm) }),
      finish: () => say({ type: "input_audio_buffer.commit", final: true }),
    };
  },
};

const openai = {
  name: "openai",
  label: "OpenAI realtime",
  rate: 24000,
  delays: true,
  languages: true,
  keyed: (offer) => offer.requireKey,
  closed: () => "",
  open({ key, model, delayMs, language }, heard) {
    if (key && !TOKEN.test(key)) return without(heard, uncarried);
    const protocols = key ? ["realtime", `openai-insecure-api-key.${key}`] : [];
    const items = new Map(); // in the order in which they were first mentioned: {text, complete}
    const item = (id) => items.get(id) ?? items.set(id, { text: "", complete: false }).get(id);
    let shown = "";
    let cleared = false;
    const words = [];
    let audioSeconds; // with words, additive: OpenAI's own server tells neither
    const grow = () => {
      const growing = [...items.values()].findIndex((each) => !each.complete);
      const all = [...items.values()];
      const stands = joined(growing < 0 ? all : all.slice(0, growing + 1));
      if (stands.length > shown.length && stands.startsWith(shown)) {
        heard.append(stands.slice(shown.length), []);
        shown = stands;
      }
      const whole = joined(all);
      heard.tentative(whole.startsWith(shown) ? whole.slice(shown.length) : "");
    };
    const end = () => {
      if (!cleared || [...items.values()].some((each) => !each.complete)) return;
      socket.over();
      heard.final({ text: joined([...items.values()]), words, audioSeconds });
    };
    const socket = connect("/v1/realtime?intent=transcription", protocols, heard, {
      frame(event) {
        switch (event.type) {
          case "session.created":
          case "transcription_session.created": {
            const transcription = { model, delay_ms: delayMs, language: language || undefined };
            const input = { format: { type: "audio/pcm", rate: 24000 }, transcription, turn_detection: null };
            say({ type: "session.update", session: { type: "transcription", audio: { input } } });
            break;
          }
          case "session.updated":
          case "transcription_session.updated":
            heard.ready();
            break;
          case "input_audio_buffer.committed":
            item(event.item_id);
            break;
          case "input_audio_buffer.cleared": // answered behind the commit: all items are known now
            cleared = true;
            end();
            break;
          case "conversation.item.input_audio_transcription.delta":
            item(event.item_id).text += event.delta ?? "";
            grow();
            break;
          case "conversation.item.input_audio_transcription.completed":
            Object.assign(item(event.item_id), { text: event.transcript, complete: true });
            words.push(...(event.words ?? []));
            audioSeconds = event.audio_seconds;
            grow();
            end();
            break;
          case "conversation.item.input_audio_transcription.failed":
          case "error":
            if (event.error?.code === "input_audio_buffer_commit_empty") break;
            socket.over();
            heard.fault(openaiFault(event.error ?? {}));
            break;
        }
      },
    });
    const say = (event) => socket.send(JSON.stringify(event));
    return {
      ...socket,
      send: (pcm) => say({ type: "input_audio_buffer.append", audio: base64(pcm) }),
      finish() {
        say({ type: "input_audio_buffer.commit" });
        say({ type: "input_audio_buffer.clear" });
      },
    };
  },
};

function joined(items) {
  return items.reduce((text, item) => text + (text && item.text && !/\s$/.test(text) && !/^\s/.test(item.text) ? " " : "") + item.text, "");
}

function openaiFault({ code, type, message }) {
  if (code === "invalid_api_key" || type === "authentication_error") return wrongKey;
  if (code === "rate_limit_exceeded" || code === "server_at_capacity") return fault(`The server is at capacity: ${message}`);
  return fault(`The server could not go on: ${message ?? "it gives no reason"} (${code ?? type ?? "no code"}).`);
}

const sessions = {
  name: "sessions",
  label: "Sessions",
  rate: 16000,
  delays: true,
  languages: true,
  keyed: (offer) => offer.requireKey,
  closed: () => "",
  open({ key, model, delayMs, language }, heard) {
    if (!PRINTED.test(key)) return without(heard, uncarried);
    let socket = null;
    let session = null;
    let over = false;
    let text = ""; // of texts that are whole
    let stands = ""; // of the one that is growing: shown, and not to be taken back
    let sent = 0; // bytes of audio
    let began = 0;
    let counted = () => {}; // told how many frames wait at the server

    create().catch(() => over || stop(gone));

    async function create() {
      const answer = await fetch("/session/create", { method: "POST", cache: "no-store", headers: bearer(key) });
      if (!answer.ok) {
        const why = await httpFault(answer);
        if (!over) stop(why);
        return;
      }
      session = await answer.json();
      if (over) forget();
      else socket = connect(session.websocket_url, [], { fault: stop }, { frame });
    }

    const blank = () => (text && !stands ? " " : "");
    const stand = (said) => {
      if (said.length <= stands.length || !said.startsWith(stands)) return;
      heard.append(blank() + said.slice(stands.length), []);
      stands = said;
    };

    function frame({ type, status, control_type, stats, text: said, committed, error, code }) {
      if (type === "status" && status === "connected") {
        control("configure", { model, delay_ms: delayMs, language: language || undefined, partials: true, vad: "off" });
      } else if (type === "status" && stats) {
        counted(stats.queue_size);
      } else if (type === "heartbeat") {
        control("ping"); // whoever is silent for long is sent away, even while the server owes a text
      } else if (type === "partial") {
        stand(committed);
        heard.tentative(said.startsWith(stands) ? blank() + said.slice(stands.length) : "");
      } else if (type === "text_response") {
        stand(said);
        text += (text ? " " : "") + said;
        stands = "";
      } else if (control_type === "configured") {
        began = performance.now();
        heard.ready();
      } else if (control_type === "ended") {
        leave();
        heard.final({ text, words: [] });
      } else if (type === "error") {
        stop(sessionFault(error, code));
      }
    }

    const control = (kind, fields = {}) => socket.send(JSON.stringify({ type: "control", control_type: kind, ...fields }));
    const forget = () =>
      fetch(`/session/${encodeURIComponent(session.session_id)}`, { method: "DELETE", keepalive: true, headers: bearer(key) }).catch(() => {});
    const leave = () => {
      over = true;
      socket?.over();
      if (session) forget();
    };
    const stop = (why) => {
      leave();
      heard.fault(why);
    };

    return {
      send(pcm) {
        sent += pcm.byteLength;
        socket.send(pcm);
      },
      /** The server drops audio that comes too fast or waits too long, so neither happens. */
      async room() {
        await socket.room();
        const early = began + sent / SESSION_BYTES_PER_MS - performance.now();
        if (early > 0) await pause(early);
        while (!over && (await waitingThere()) > SESSION_MOST_WAITING) await pause(ROOM_POLL_MS);
      },
      finish: () => control("end"),
      abort: leave,
    };

    function waitingThere() {
      const answer = new Promise((resolve) => (counted = resolve));
      control("get_stats");
      return answer;
    }
  },
};

function sessionFault(error, code) {
  if (code === "RATE_LIMITED") return fault(`The server takes no more for now: ${error}.`);
  if (code === "CONNECTION_FAILED") return fault(`The server is at capacity, or shutting down: ${error}.`);
  return fault(`The server could not go on: ${error} (${code ?? "no code"}).`);
}

const transcriptions = {
  name: "transcriptions",
  listed: "openai",
  label: "File upload",
  rate: 16000,
  file: true,
  remark: "The transcript comes at the end, as a whole.",
  languages: true,
  keyed: (offer) => offer.requireKey,
  closed: () => "",
  open({ key, model, language, recording }, heard) {
    const pieces = [];
    const request = new AbortController();
    let over = false;
    queueMicrotask(() => over || (PRINTED.test(key) ? heard.ready() : heard.fault(uncarried)));

    async function upload() {
      const form = new FormData();
      form.append("file", recording ?? wav(pieces, 16000), recording?.name ?? "microphone.wav");
      form.append("model", model);
      form.append("response_format", "verbose_json");
      form.append("timestamp_granularities[]", "word");
      if (language) form.append("language", language);
      const answer = await fetch("/v1/audio/transcriptions", { method: "POST", body: form, headers: bearer(key), signal: request.signal });
      if (!answer.ok) return heard.fault(await httpFault(answer));
      const { text, words, duration } = await answer.json();
      const timed = (words ?? []).map(({ word, start, end }) => ({ text: word, start, end }));
      heard.append(text, timed);
      return heard.final({ text, words: timed, audioSeconds: duration });
    }

    return {
      send: (pcm) => pieces.push(pcm),
      room: () => Promise.resolve(),
      finish: () => upload().catch(() => over || heard.fault(gone)),
      abort() {
        over = true;
        request.abort();
      },
    };
  },
};

export const surfaces = [yap, realtime, openai, sessions, transcriptions];

// ---- what they share

const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/; // what the name of a WebSocket's subprotocol may be made of
const PRINTED = /^[!-~]*$/;
const uncarried = { kind: "other", sentence: "This key has characters that cannot be sent here. Another surface may take it, or another key." };
const wrongKey = { kind: "key", sentence: "The server does not know this key." };
const gone = {
  kind: "other",
  sentence: "The server does not answer. See whether it is still running, then try again; what was heard so far stays here.",
};

function fault(sentence) {
  return { kind: "other", sentence };
}

/** A channel that fails before anything can be sent. */
function without(heard, why) {
  let over = false;
  queueMicrotask(() => over || heard.fault(why));
  return { abort: () => (over = true) };
}

function bearer(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** A required key travels in a header here, and browsers cannot set one for a WebSocket. */
function headerKey(offer) {
  return offer.requireKey ? "This server wants its key in a header here, which browsers cannot send." : "";
}

function identifier() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Why a request was refused, from any of the shapes in which servers say so. */
async function httpFault(answer) {
  if (answer.status === 401 || answer.status === 403) return wrongKey;
  const body = await answer.json().catch(() => ({}));
  const said = [body.error?.message, body.detail, body.error].find((each) => typeof each === "string") ?? `status ${answer.status}`;
  if (answer.status === 429) return fault(`The server takes no more for now: ${said}.`);
  if (answer.status === 503) return fault(`The server is at capacity, or shutting down: ${said}.`);
  return fault(`The server refused: ${said}.`);
}

/** The state of the server before anything is asked of it: a fault, or nothing when it is well. */
export async function health() {
  let answer;
  try {
    answer = await fetch("/healthz", { cache: "no-store" });
  } catch {
    return gone;
  }
  if (answer.ok) return null;
  const { status } = await answer.json().catch(() => ({}));
  if (status === "draining") return fault("The server is shutting down and takes nobody in any more. Try again in a moment.");
  return fault(`The server is not well (${status ?? answer.status}). Its log says why.`);
}

/** A WebSocket of JSON text. What comes after `over` or `abort` is not told any more. */
function connect(path, protocols, heard, { frame }) {
  const url = new URL(path, location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(url, protocols);
  let open = false;
  let over = false;
  const waiting = [];
  socket.addEventListener("open", () => {
    open = true;
    waiting.splice(0).forEach((each) => socket.send(each));
  });
  socket.addEventListener("message", ({ data }) => {
    if (over) return;
    let told;
    try {
      told = JSON.parse(data);
    } catch {
      return; // no frame of ours
    }
    frame(told);
  });
  socket.addEventListener("close", ({ code, reason }) => {
    if (over) return;
    over = true;
    heard.fault(closing(code, reason, open));
  });
  const close = () => {
    over = true;
    socket.close(1000);
  };
  return {
    send(data) {
      if (open) socket.send(data);
      else waiting.push(data);
    },
    async room() {
      while (!over && (!open || socket.bufferedAmount > MOST_UNSENT_BYTES)) await pause(ROOM_POLL_MS);
    },
    over: close,
    abort: close,
  };
}

function closing(code, reason, wasOpen) {
  switch (code) {
    case 1006:
      return wasOpen
        ? fault("The connection to the server was lost. See whether it is still running, then try again; what was heard so far stays here.")
        : fault("The server refused the connection. It may be at capacity, shutting down, or demand a key here. Try again, or take another surface.");
    case 1008:
      return fault(`The server sent us away: ${reason || "it gives no reason"}.`);
    case 1012:
      return fault("The server is shutting down. Try again in a moment.");
    case 1013:
      return fault(`The server is at capacity: ${reason || "it takes no more for now"}. Try again in a moment.`);
    case 4000:
      return fault("The server closed the connection because nothing was said for long.");
    case 4003:
      return fault("The server closed the connection because it was open for the longest time that is allowed.");
    default:
      return fault(`The server closed the connection: ${reason || `code ${code}`}.`);
  }
}
