// The audio worklet: what the microphone gives, mixed to one channel, at the surface's sample rate, as PCM16 in chunks.

import { CHUNK_SECONDS, Resampler, quantise } from "./pcm.js";

class Capture extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate } }) {
    super();
    this.resampler = new Resampler(sampleRate, rate);
    this.chunk = new Float32Array(Math.round(rate * CHUNK_SECONDS));
    this.filled = 0;
    this.over = false;
    this.port.onmessage = () => this.end();
  }

  process([channels]) {
    if (this.over) return false;
    if (channels.length > 0) this.take(this.resampler.push(mixed(channels)));
    return true;
  }

  take(samples) {
    for (let at = 0; at < samples.length; ) {
      const room = Math.min(this.chunk.length - this.filled, samples.length - at);
      this.chunk.set(samples.subarray(at, at + room), this.filled);
      this.filled += room;
      at += room;
      if (this.filled === this.chunk.length) this.give();
    }
  }

  give() {
    const samples = this.chunk.subarray(0, this.filled);
    let energy = 0;
    for (const sample of samples) energy += sample * sample;
    const pcm = quantise(samples);
    this.port.postMessage({ pcm, level: Math.sqrt(energy / Math.max(1, samples.length)) }, [pcm.buffer]);
    this.filled = 0;
  }

  end() {
    if (this.over) return;
    this.over = true;
    this.take(this.resampler.flush());
    if (this.filled > 0) this.give();
    this.port.postMessage({ over: true });
  }
}

function mixed(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, at) => channels.reduce((sum, channel) => sum + channel[at], 0) / channels.length);
}

registerProcessor("capture", Capture);
