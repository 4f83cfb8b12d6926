// Where audio comes from: the microphone, or a recording that is decoded and replayed.

import { CHUNK_SECONDS, quantise, wav } from "./pcm.js";

const FAST_CHUNK_SECONDS = 1;
const WORKLET_SECONDS = 2; // the worklet's last chunk is waited for so long

/** Why there is no audio, as a sentence for the reader. */
export class SourceFault extends Error {}

/** Why this page can have no microphone at all; empty when it can ask for one. */
export function microphoneObstacle() {
  if (window.isSecureContext && navigator.mediaDevices?.getUserMedia) return "";
  if (window.isSecureContext) return "This browser offers no microphone to pages. A recording can be transcribed all the same.";
  return (
    `Browsers give the microphone only to pages that come over HTTPS or from localhost, and this one came from ${location.origin}. ` +
    `Put a proxy with a certificate before the server, or tunnel to it (ssh -L ${location.port || 80}:localhost:${location.port || 80} HOST) ` +
    `and open http://localhost:${location.port || 80}. A recording can be transcribed all the same.`
  );
}

/**
 * The microphone as PCM16 chunks. Resolves once it is heard; `stop` resolves after the last chunk.
 * Raises SourceFault when it cannot be had.
 */
export async function openMicrophone({ rate, chunk, lost }) {
  const obstacle = microphoneObstacle();
  if (obstacle) throw new SourceFault(obstacle);
  const stream = await askForMicrophone();
  const context = new AudioContext();
  try {
    await context.audioWorklet.addModule("/page/capture.js");
    await context.resume();
  } catch (error) {
    stream.getTracks().forEach((track) => track.stop());
    await context.close();
    throw new SourceFault(`The browser could not process the microphone's sound: ${error.message}`);
  }
  const source = context.createMediaStreamSource(stream);
  const capture = new AudioWorkletNode(context, "capture", { processorOptions: { rate } });
  const over = new Promise((resolve) => {
    capture.port.onmessage = ({ data }) => (data.over ? resolve() : chunk(data.pcm, data.level));
  });
  source.connect(capture);
  capture.connect(context.destination); // silent; some browsers run only what is heard
  const [track] = stream.getAudioTracks();
  track.addEventListener("ended", () => lost());
  let stopping = null;
  return {
    stop: () => (stopping ??= stop()),
  };

  async function stop() {
    capture.port.postMessage("end");
    await Promise.race([over, new Promise((resolve) => setTimeout(resolve, 1000 * WORKLET_SECONDS))]);
    stream.getTracks().forEach((each) => each.stop());
    source.disconnect();
    capture.disconnect();
    await context.close();
  }
}

async function askForMicrophone() {
  const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    switch (error.name) {
      case "NotAllowedError":
      case "SecurityError":
        throw new SourceFault(
          "The browser does not let this page use the microphone. Allow it in the page's settings, beside the address, and press Speak again.",
        );
      case "NotFoundError":
      case "OverconstrainedError":
        throw new SourceFault("No microphone was found. Connect one and press Speak again, or choose a recording.");
      case "NotReadableError":
      case "AbortError":
        throw new SourceFault("The microphone cannot be read. Another program may hold it; close that and press Speak again.");
      default:
        throw new SourceFault(`The microphone cannot be used: ${error.message}`);
    }
  }
}

/**
 * A recording as mono PCM16. One that has the rate already passes sample by sample; others the browser resamples.
 * Raises SourceFault when it holds no audio that the browser knows.
 */
export async function decode(file, rate) {
  let decoded;
  const positive = await (fullScale ??= measureFullScale());
  try {
    decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new SourceFault(`${file.name} is no recording that this browser can decode. WAV, MP3, M4A, FLAC, Ogg and WebM are worth a try.`);
  }
  if (decoded.numberOfChannels === 1) return quantise(decoded.getChannelData(0), positive);
  const mix = new Float32Array(decoded.length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    decoded.getChannelData(channel).forEach((sample, at) => (mix[at] += sample / decoded.numberOfChannels));
  }
  return quantise(mix, positive);
}

let fullScale = null;

/** What this browser's decoder divides positive samples by, 32767 or 32768: without that, a file would not come out as it is. */
async function measureFullScale() {
  const file = wav([Int16Array.of(16384, 16384)], 16000);
  const decoded = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(await file.arrayBuffer());
  return decoded.getChannelData(0)[0] > 0.500001 ? 32767 : 32768;
}

/**
 * Give the chunks of a recording one after the other, each when its last sample would have been spoken, or as fast as `room` lets.
 * `done` resolves to whether all were given.
 */
export function replay({ pcm, rate, fast, chunk, room }) {
  let stopped = false;
  let wake = () => {};
  const size = Math.round(rate * (fast ? FAST_CHUNK_SECONDS : CHUNK_SECONDS));
  const began = performance.now();
  async function give() {
    for (let at = 0; at < pcm.length; at += size) {
      const end = Math.min(pcm.length, at + size);
      const early = began + (1000 * end) / rate - performance.now();
      if (!fast && early > 0) {
        await new Promise((resolve) => {
          wake = resolve;
          setTimeout(resolve, early);
        });
      }
      if (stopped) return false;
      chunk(pcm.slice(at, end), loudness(pcm, at, end));
      await room();
    }
    return !stopped;
  }
  return {
    done: give(),
    async stop() {
      stopped = true;
      wake();
    },
  };
}

function loudness(pcm, from, to) {
  let energy = 0;
  for (let at = from; at < to; at++) energy += (pcm[at] / 32768) ** 2;
  return Math.sqrt(energy / Math.max(1, to - from));
}
