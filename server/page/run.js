// One utterance from its first sample to its summary: a source, a channel, a take, and what is measured between them.

import { SourceFault, decode, openMicrophone, replay } from "./audio.js";
import { health } from "./surfaces.js";

/**
 * States: connecting, listening or sending, finishing, and then done or failed, after which nothing happens any more.
 * `seen` is told of every change: state(name), text(text, words), tentative(text), note(sentence, kind), level(0..1),
 * figures({sent, first}), done({text, words, ...}) or failed({kind, sentence}).
 */
export class Run {
  constructor(surface, options, source, seen) {
    Object.assign(this, { surface, options, source, seen });
    this.state = "";
    this.sentSamples = 0;
    this.waiting = []; // chunks that came before the surface was ready
    this.isReady = false;
    this.feeding = null; // the microphone or the replay
    this.channel = null;
  }

  get sent() {
    return this.sentSamples / this.surface.rate;
  }

  get over() {
    return this.state === "done" || this.state === "failed";
  }

  async start() {
    this.become("connecting");
    try {
      const unwell = await health();
      if (unwell) return this.fail(unwell);
      const { file } = this.source;
      const pcm = file ? await decode(file, this.surface.rate) : null;
      if (this.over) return undefined;
      if (!file) await this.listen();
      if (this.over) return undefined;
      this.channel = this.surface.open({ ...this.options, recording: file }, this.heard(pcm));
    } catch (error) {
      const told = error instanceof SourceFault ? error.message : `This page has a fault: ${error.message}`;
      this.fail({ kind: "other", sentence: told });
      if (!(error instanceof SourceFault)) throw error;
    }
    return undefined;
  }

  async listen() {
    const microphone = await openMicrophone({
      rate: this.surface.rate,
      chunk: (pcm, level) => this.chunk(pcm, level),
      lost: () => {
        if (this.over || this.state === "finishing") return;
        this.seen.note("The microphone was disconnected.");
        this.stop();
      },
    });
    if (this.over) await microphone.stop();
    else this.feeding = microphone;
  }

  heard(pcm) {
    const unlessOver = (act) => (value, more) => this.over || act(value, more);
    return {
      ready: unlessOver(() => this.ready(pcm)),
      append: unlessOver((text, words) => {
        this.timeFirst(text);
        this.seen.text(text, words);
      }),
      tentative: unlessOver((text) => this.seen.tentative(text)),
      note: unlessOver((sentence, kind) => this.seen.note(sentence, kind)),
      final: unlessOver((final) => this.finish(final)),
      fault: unlessOver((fault) => this.fail(fault)),
    };
  }

  timeFirst(text) {
    if (this.first !== undefined || this.surface.file || !text.trim()) return;
    this.first = (performance.now() - this.firstSentAt) / 1000;
    this.tellFigures();
  }

  ready(pcm) {
    this.isReady = true;
    if (this.state === "finishing") {
      this.sendWaiting();
      this.finishChannel();
      return;
    }
    this.become(pcm ? "sending" : "listening");
    this.sendWaiting();
    if (!pcm) return;
    const { rate } = this.surface;
    const fast = this.source.fast || this.surface.file;
    const feeding = replay({ pcm, rate, fast, chunk: (piece, level) => this.chunk(piece, level), room: () => this.channel.room() });
    this.feeding = feeding;
    feeding.done.then((whole) => whole && this.stop());
  }

  chunk(pcm, level) {
    if (this.over) return;
    this.seen.level(level);
    if (this.isReady) this.send(pcm);
    else this.waiting.push(pcm);
  }

  sendWaiting() {
    this.waiting.splice(0).forEach((pcm) => this.send(pcm));
  }

  send(pcm) {
    this.firstSentAt ??= performance.now();
    this.sentSamples += pcm.length;
    this.channel.send(pcm);
    this.tellFigures();
  }

  tellFigures() {
    this.seen.figures({ sent: this.sent, first: this.first });
  }

  /** No more audio; what was said is still transcribed. */
  async stop() {
    if (this.over || this.state === "finishing") return;
    this.become("finishing");
    this.seen.level(0);
    await this.feeding?.stop();
    if (this.over) return;
    if (this.isReady) this.finishChannel();
  }

  finishChannel() {
    this.finishedAt = performance.now();
    this.channel.finish();
  }

  finish(final) {
    const toFinal = this.finishedAt === undefined ? undefined : (performance.now() - this.finishedAt) / 1000;
    this.become("done");
    this.letGo();
    this.seen.done({ ...final, sent: this.sent, first: this.first, toFinal });
  }

  fail(fault) {
    this.become("failed");
    this.letGo();
    this.seen.failed(fault);
  }

  /** Forget what is under way. */
  cancel() {
    if (this.over) return;
    this.channel?.abort();
    this.fail({ kind: "cancelled", sentence: "" });
  }

  letGo() {
    this.seen.level(0);
    this.waiting = [];
    this.feeding?.stop();
    this.feeding = null;
  }

  become(state) {
    this.state = state;
    this.seen.state(state);
  }
}
