// Samples as they travel: PCM16 from floats, another sample rate, base64, and WAV.

export const CHUNK_SECONDS = 0.08;

/** Floats of -1..1 as PCM16. `positive` is what 1 stands for, which some decoders take for 32767, though -1 is -32768 to all. */
export function quantise(samples, positive = 32768) {
  const pcm = new Int16Array(samples.length);
  for (let at = 0; at < samples.length; at++) {
    const value = samples[at];
    pcm[at] = Math.max(-32768, Math.min(32767, Math.round(value * (value > 0 ? positive : 32768))));
  }
  return pcm;
}

/**
 * A stream of floats at another sample rate: a windowed-sinc low-pass that ends below the lower of both Nyquist frequencies,
 * evaluated where output samples lie. The passband reaches to 0.9 of that frequency; what would alias is 80 dB down.
 */
export class Resampler {
  constructor(inputRate, outputRate) {
    const common = divisor(Math.round(inputRate), Math.round(outputRate));
    this.up = Math.round(outputRate) / common;
    this.down = Math.round(inputRate) / common;
    this.same = this.up === this.down;
    const narrow = Math.max(1, this.down / this.up); // input samples to one of the lower rate
    this.half = Math.ceil(52 * narrow);
    this.cutoff = 0.475 / narrow; // cycles per input sample
    this.phases = new Map();
    this.history = new Float32Array(this.half); // silence before the first sample: no delay
    this.first = -this.half; // index in the input of history[0]
    this.taken = 0;
    this.made = 0;
  }

  /** The output samples that the input so far determines. */
  push(input) {
    this.taken += input.length;
    if (this.same) return Float32Array.from(input);
    const samples = new Float32Array(this.history.length + input.length);
    samples.set(this.history);
    samples.set(input, this.history.length);
    const known = this.first + samples.length; // input indices below this are known
    const output = [];
    for (;;) {
      const at = this.made * this.down;
      const whole = Math.floor(at / this.up);
      if (whole + this.half >= known) break;
      const weights = this.weights(at % this.up);
      const from = whole - this.half + 1 - this.first;
      let sum = 0;
      for (let tap = 0; tap < weights.length; tap++) sum += weights[tap] * samples[from + tap];
      output.push(sum);
      this.made++;
    }
    const needed = Math.floor((this.made * this.down) / this.up) - this.half + 1;
    const drop = Math.max(0, Math.min(samples.length, needed - this.first));
    this.history = samples.slice(drop);
    this.first += drop;
    return Float32Array.from(output);
  }

  /** The rest, once no more input comes. */
  flush() {
    if (this.same) return new Float32Array(0);
    const whole = Math.ceil((this.taken * this.up) / this.down);
    const rest = this.push(new Float32Array(this.half + 1));
    return rest.slice(0, Math.max(0, rest.length - Math.max(0, this.made - whole)));
  }

  weights(phase) {
    let weights = this.phases.get(phase);
    if (!weights) {
      weights = new Float32Array(2 * this.half);
      let sum = 0;
      for (let tap = 0; tap < weights.length; tap++) {
        const distance = tap - this.half + 1 - phase / this.up;
        const angle = 2 * Math.PI * this.cutoff * distance;
        weights[tap] = (angle === 0 ? 1 : Math.sin(angle) / angle) * kaiser(distance / this.half);
        sum += weights[tap];
      }
      for (let tap = 0; tap < weights.length; tap++) weights[tap] /= sum;
      this.phases.set(phase, weights);
    }
    return weights;
  }
}

function divisor(a, b) {
  return b === 0 ? a : divisor(b, a % b);
}

function kaiser(place, beta = 8) {
  return Math.abs(place) >= 1 ? 0 : bessel(beta * Math.sqrt(1 - place * place)) / bessel(beta);
}

function bessel(x) {
  let sum = 1;
  let term = 1;
  for (let k = 1; term > 1e-9 * sum; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

/** PCM16 as base64 text. All machines that run browsers are little-endian. */
export function base64(pcm) {
  const bytes = new Uint8Array(pcm.buffer, pcm.byteOffset, pcm.byteLength);
  if (bytes.toBase64) return bytes.toBase64();
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}

/** Mono PCM16 as a WAV file. */
export function wav(pieces, rate) {
  const size = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  const head = new DataView(new ArrayBuffer(44));
  const ascii = (at, text) => [...text].forEach((letter, n) => head.setUint8(at + n, letter.charCodeAt(0)));
  ascii(0, "RIFF");
  head.setUint32(4, 36 + size, true);
  ascii(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);
  head.setUint16(22, 1, true);
  head.setUint32(24, rate, true);
  head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  ascii(36, "data");
  head.setUint32(40, size, true);
  return new Blob([head, ...pieces], { type: "audio/wav" });
}
