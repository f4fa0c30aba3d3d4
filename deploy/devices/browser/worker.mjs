// One model in a fresh worker, controlled by messages {do, …}, as in deploy/measuring/worker.py and with its figures.
import { checksum, decode, preprocess } from "./preprocess.mjs";

// A sample lasts at least this many steps of the browser's coarse clock.
const STEPS = 100;

let ort, session, bundle, stepMs, rules, inputs = [], chosen = [], position = 0;

const requests = {
  async start({ model, provider, threads, clockMs, rules: given }) {
    bundle = model;
    rules = given;
    stepMs = clockMs;
    ort = await import(provider === "webgpu" ? "./ort/ort.webgpu.min.mjs" : "./ort/ort.wasm.min.mjs");
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
    ort.env.logLevel = "error";
    return {};
  },

  async open({ provider }) {
    const [first] = await golden();
    const start = performance.now();
    const file = await (await fetch(`${bundle.folder}/model`)).arrayBuffer();
    const read = performance.now();
    session = await ort.InferenceSession.create(file, {
      executionProviders: [provider], graphOptimizationLevel: "all", logSeverityLevel: 3,
    });
    const loaded = performance.now();
    await run(first);
    return { file_ms: read - start, load_ms: loaded - read, first_ms: performance.now() - loaded };
  },

  async golden() {
    const recorded = await golden(), answers = [], checksums = [];
    let difference = 0;
    for (let index = 0; index < recorded.length; index++) {
      const image = await decode(await bytes(`${bundle.folder}/golden/${index}`), bundle.preprocess.mode);
      checksums.push(checksum(image));
      const tensor = preprocess(image, bundle.preprocess);
      for (let at = 0; at < tensor.length; at++) difference = Math.max(difference, Math.abs(tensor[at] - recorded[index][at]));
      answers.push([...(await run(recorded[index]))].map((value) => (Number.isFinite(value) ? value : null)));
    }
    return { checksums, tensor_max_abs: difference, logits: answers };
  },

  async predict({ count, labels }) {
    const classes = [], confidences = [], inTop5 = [];
    for (let index = 0; index < count; index++) {
      const logits = await run(await tensorOf(index));
      const best = argmax(logits);
      classes.push(best);
      const confidence = 1 / logits.reduce((sum, value) => sum + Math.exp(value - logits[best]), 0);
      confidences.push(Number.isFinite(confidence) ? Number(confidence.toFixed(6)) : 0);
      if (labels) inTop5.push(logits.filter((value) => value > logits[labels[index]]).length < 5);
      if (index % 8 === 0) postMessage({ progress: index / count });
    }
    return { classes, confidences, in_top5: labels ? inTop5 : null };
  },

  async prepare({ count }) {
    inputs = [];
    const wanted = Math.min(rules.inputs, count || bundle.golden), total = count || bundle.golden;
    chosen = [...new Set(Array.from({ length: wanted }, (_, at) => Math.trunc(wanted > 1 ? (at * (total - 1)) / (wanted - 1) : 0)))];
    const preprocessNs = [], postprocessNs = [];
    for (const index of chosen) {
      const file = await bytes(count ? `images/${index}` : `${bundle.folder}/golden/${index}`);
      const start = performance.now();
      inputs.push(preprocess(await decode(file, bundle.preprocess.mode), bundle.preprocess));
      preprocessNs.push(ns(performance.now() - start));
    }
    const { warmUp, callMs } = await warm();
    for (const tensor of inputs) {
      const logits = await run(tensor), start = performance.now();
      [...logits].map((value, index) => [value, index]).sort((a, b) => b[0] - a[0]).slice(0, 5);
      postprocessNs.push(ns(performance.now() - start));
    }
    const calls = Math.ceil(Math.max(rules.sample_ns / 1e6, STEPS * stepMs) / callMs);
    return { preprocess_ns: preprocessNs, postprocess_ns: postprocessNs, warm_up: warmUp, call_ms: callMs, calls };
  },

  async time({ samples, calls }) {
    const untimed = samples >= rules.untimed_from ? Math.max(1, Math.trunc(samples / rules.untimed_every)) * calls : 0;
    for (let call = 0; call < untimed; call++) await run(nextInput());
    const times = [];
    let logits;
    for (let sample = 0; sample < samples; sample++) {
      const tensors = Array.from({ length: calls }, nextInput);
      const start = performance.now();
      for (const tensor of tensors) logits = await run(tensor);
      times.push(ns(performance.now() - start));
    }
    return { ns: times, input: chosen[(position - 1) % chosen.length], class: argmax(logits) };
  },
};

const ns = (milliseconds) => Math.max(1, Math.round(milliseconds * 1e6));
const argmax = (values) => values.reduce((best, value, index) => (value > values[best] ? index : best), 0);
const bytes = async (path) => (await fetch(path)).arrayBuffer();
const nextInput = () => inputs[position++ % inputs.length];

async function tensorOf(index) {
  return preprocess(await decode(await bytes(`images/${index}`), bundle.preprocess.mode), bundle.preprocess);
}

/** The recorded tensors, one per sample. */
async function golden() {
  const file = await bytes(`${bundle.folder}/tensors`);
  const all = bundle.preprocess.dtype === "uint8" ? new Uint8Array(file) : new Float32Array(file);
  const size = all.length / bundle.golden;
  return Array.from({ length: bundle.golden }, (_, index) => all.slice(index * size, (index + 1) * size));
}

/** Logits of one image, which is repeated if the model takes a batch. */
async function run(tensor) {
  const { channels, height, width, batch } = bundle.input;
  const count = batch ?? 1;
  const data = count === 1 ? tensor : tensor.constructor.from({ length: count * tensor.length }, (_, at) => tensor[at % tensor.length]);
  const feeds = { [session.inputNames[0]]: new ort.Tensor(bundle.preprocess.dtype, data, [count, channels, height, width]) };
  const output = (await session.run(feeds))[session.outputNames[0]];
  const logits = Float32Array.from(output.data.slice(0, bundle.labels));
  output.dispose();
  return logits;
}

/** Run until the times are stable. */
async function warm() {
  const means = [], begin = performance.now();
  let calls = 0, settled = false;
  while (!settled && performance.now() - begin < 1000 * rules.warm_up_cap_s) {
    const start = performance.now();
    let done = 0;
    while (done < rules.window_calls || performance.now() - start < Math.max(1000 * rules.window_s, STEPS * stepMs)) {
      await run(nextInput());
      done++;
    }
    calls += done;
    means.push((performance.now() - start) / done);
    const [before, last] = means.slice(-2);
    settled = calls >= rules.warm_up_calls && performance.now() - begin >= 1000 * rules.warm_up_s && means.length > 1
      && Math.abs(last / before - 1) < rules.settled;
  }
  // callMs is from the fastest window: on a busy machine the last one may have taken several times as long
  return { warmUp: { ms: performance.now() - begin, calls, settled }, callMs: Math.max(Math.min(...means), 1e-6) };
}

onmessage = async ({ data }) => {
  try {
    postMessage({ answer: await requests[data.do](data) });
  } catch (error) {
    postMessage({ error: `${error?.message ?? error}` });
  }
};
