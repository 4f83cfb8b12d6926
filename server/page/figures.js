// Numbers as the page writes them.

export function seconds(value, digits = 1) {
  return value === undefined || Number.isNaN(value) ? "–" : `${value.toFixed(digits)} s`;
}

/** Below a second in milliseconds. */
export function span(value) {
  if (value === undefined || Number.isNaN(value)) return "–";
  return Math.abs(value) < 0.9995 ? `${Math.round(1000 * value)} ms` : seconds(value, 2);
}

/** A place in the audio: minutes, seconds, hundredths. */
export function clock(value) {
  const hundredths = Math.round(100 * value);
  const rest = ((hundredths % 6000) / 100).toFixed(2).padStart(5, "0");
  return `${Math.floor(hundredths / 6000)}:${rest}`;
}

export function median(values) {
  if (values.length === 0) return undefined;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
