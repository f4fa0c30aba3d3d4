// The order and duration of the page's timing, by the same rules and figures as in deploy/measuring/measure.py.

/** Numbers in [0, 1) from a 32-bit seed: mulberry32 (Tommy Ettinger, 2017, public domain). */
export function mulberry32(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Shuffle in place; all orders are equally likely (Fisher and Yates; Durstenfeld's form, 1964). */
export function shuffle(values, random) {
  for (let last = values.length - 1; last > 0; last--) {
    const chosen = Math.floor(random() * (last + 1));
    [values[last], values[chosen]] = [values[chosen], values[last]];
  }
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b), middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Whether one process's blocks have too few samples, or too wide an interval of their median. */
export function lacking(blocks, processes, rules) {
  const samples = blocks.reduce((sum, block) => sum + block.ns.length, 0) * processes;
  const logs = blocks.map((block) => Math.log(median(block.ns)));
  const mean = logs.reduce((sum, value) => sum + value, 0) / logs.length;
  const deviation = Math.sqrt(logs.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (logs.length - 1));
  const half = 1.96 * deviation / Math.sqrt(logs.length);
  return samples < rules.samples_wanted || half > rules.half_width_wanted * Math.sqrt(processes);
}

/** Whether a process's blocks can be completed in the rest of the time budget, of which `share` is spent. */
export function worthWaitingFor(blocks, processes, share, rules) {
  const samples = blocks.reduce((sum, block) => sum + block.ns.length, 0) * processes / share;
  return lacking(blocks, processes, rules) && samples >= rules.samples_wanted;
}
