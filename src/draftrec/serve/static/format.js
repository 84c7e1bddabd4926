// Figures as people read them.

export function number(value, digits = 0) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "-";
  const shown = value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return /^-[0.]+$/.test(shown) ? shown.slice(1) : shown; // there is no minus nothing
}

/** Digits behind the point that tell apart what lies `step` apart. */
export const places = (step) => Math.max(0, -Math.floor(Math.log10(step) + 1e-9));

/** A figure with as many digits as its size needs. */
export const short = (value) => number(value, Number.isInteger(value) ? 0 : value < 1 ? 2 : value < 100 ? 1 : 0);

export const percent = (share, digits = 0) =>
  share === null || share === undefined ? "-" : `${number(100 * share, digits)} %`;

export const megabytes = (bytes) =>
  bytes === null || bytes === undefined ? "-" : number(bytes / 1e6, bytes < 1e7 ? 2 : 0);

/** Seconds as "48 s", "12 min", "3 h 20 min". */
export function duration(seconds) {
  if (seconds < 1) return `${number(1000 * seconds)} ms`;
  if (seconds < 90) return `${number(seconds, seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Seconds as a tick of an axis, shorter than `duration`. */
export function clock(seconds) {
  if (Math.abs(seconds) < 600) return `${number(seconds, seconds % 1 ? 1 : 0)} s`;
  return seconds < 7200 ? `${number(seconds / 60)} min` : `${number(seconds / 3600, 1)} h`;
}

/** Unix seconds as this browser's clock shows them. */
export const timeOfDay = (seconds) =>
  new Date(1000 * seconds).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** Hours with as many digits as say something. */
export const hours = (value) => number(value, value < 0.1 ? 5 : value < 10 ? 3 : 1);

/** An amount in whatever currency the price is in. */
export const money = (value) => number(value, Math.abs(value) < 1 ? 4 : 2);

/** A share of something, null where there is nothing to have a share of. */
export const ratio = (numerator, denominator) => (denominator ? numerator / denominator : null);
