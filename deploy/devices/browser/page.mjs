// The latency measurement of deploy/measuring/measure.py in a browser: fresh workers for each model, interleaved
// blocks, raw values sent to the computer. Every model gets all processes of the plan, even if it is slow to start.
import { median, mulberry32, shuffle, worthWaitingFor } from "./schedule.mjs";

const $ = (id) => document.getElementById(id);

let job, lastBeat = 0;

async function post(message) {
  lastBeat = performance.now();
  const answer = await fetch("message", { method: "POST", body: JSON.stringify(message) });
  if (!answer.ok) throw new Error("the computer is no longer listening");
}

async function show(stage, share) {
  $("stage").textContent = stage;
  $("bar").value = share;
  if (performance.now() - lastBeat > 250) await post({ progress: stage, share });
}

const label = ({ name, runtime }) => (runtime ? `${name} on ${runtime}` : name);

/** Start a worker for a model; `ask` sends a request and waits for the answer. */
function startWorker(model, provider, threads, clockMs) {
  const worker = new Worker("worker.mjs", { type: "module" });
  const ask = (request, onProgress) => new Promise((resolve, reject) => {
    worker.onerror = (event) => reject(new Error(event.message || `the worker of ${model.name} could not start`));
    worker.onmessage = ({ data }) => {
      if (data.progress !== undefined) onProgress?.(data.progress);
      else if (data.error !== undefined) reject(new Error(`${model.name}: ${data.error}`));
      else resolve(data.answer);
    };
    worker.postMessage(request);
  });
  return { ask, end: () => worker.terminate(), ready: ask({ do: "start", model, provider, threads, clockMs, rules: job.rules }) };
}

/** The smallest observed step of the clock, in milliseconds. */
function clockStep() {
  let smallest = Infinity;
  for (let step = 0; step < 20; step++) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    smallest = Math.min(smallest, now - start);
  }
  return smallest;
}

async function adapter() {
  const gpu = await navigator.gpu?.requestAdapter();
  if (!gpu) return null;
  const { vendor, architecture, description } = gpu.info ?? {};
  return [vendor, architecture, description].filter(Boolean).join(" ") || "unnamed";
}

async function measure() {
  const { plan, provider } = job, cores = navigator.hardwareConcurrency ?? 1;
  const isolated = self.crossOriginIsolated, clockMs = clockStep(), gpu = await adapter();
  if (Math.max(plan.threads, ...job.models.map((model) => model.threads)) > 1 && !isolated) {
    throw new Error("a page served over plain http from another machine can use one thread only: omit --threads, and threads= in --runtime");
  }
  if (provider === "webgpu" && !gpu) throw new Error("WebGPU is not available in this browser; it requires https or localhost, and a GPU");
  const threads = isolated ? plan.threads ?? cores : 1;
  const environment = {
    userAgent: navigator.userAgent, cores, threads, isolated, secure: self.isSecureContext, clock_ms: clockMs,
    memory_gb: navigator.deviceMemory ?? null, gpu, screen: `${screen.width}x${screen.height} at ${devicePixelRatio}`,
  };
  $("facts").textContent = `${provider === "webgpu" ? `WebGPU on ${gpu}` : `${threads} of ${cores} threads`}, clock step ${(clockMs * 1000).toFixed(0)} µs`;
  const results = job.models.map((model) => ({
    bundle: model.id, opened: [], prepared: [], blocks: [], one_thread: [], golden: null, predictions: null, checked: 0, differed: 0, model,
  }));
  const origin = performance.now(), random = mulberry32(plan.seed);
  for (let process = 0; process < plan.processes; process++) {
    const workers = job.models.map((model) => startWorker(model, provider, model.threads ?? threads, clockMs));
    try {
      for (const worker of workers) await worker.ready;
      for (const [index, worker] of workers.entries()) {
        if (process === 0) await show("loading", index / workers.length);
        results[index].opened.push(await worker.ask({ do: "open", provider }));
      }
      if (process === 0) await answerOnce(workers, results);
      for (const [index, worker] of workers.entries()) {
        if (process === 0) await show("warm-up", index / workers.length);
        const answer = await worker.ask({ do: "prepare", count: job.images });
        if (process === 0) Object.assign(results[index], blockOf(answer));
        results[index].prepared.push(answer);
      }
      await timeBlocks(workers, results, process, random, origin);
    } finally {
      for (const worker of workers) worker.end();
    }
    const maxThreads = Math.max(...job.models.map((model) => model.threads ?? threads));
    if (process === 0 && maxThreads > 1) await timeWithOneThread(results, provider, clockMs, origin);
    const measured = { environment, models: results.map(({ model, ...measurements }) => measurements) };
    await post(process + 1 < plan.processes ? { measured } : { result: measured });
  }
  return results;
}

/** Run the golden samples and test images, in each model's first worker. */
async function answerOnce(workers, results) {
  for (const [index, worker] of workers.entries()) {
    await show("accuracy", index / workers.length);
    results[index].golden = await worker.ask({ do: "golden" });
    if (!job.images) continue;
    results[index].predictions = await worker.ask(
      { do: "predict", count: job.images, labels: job.targets }, (share) => show("accuracy", (index + share) / workers.length),
    );
  }
}

/** Pairs of rounds with one block per model: in random order, then in reverse. */
async function timeBlocks(workers, results, process, random, origin) {
  const { plan, rules } = job, order = workers.map((_, index) => index), first = results[0].blocks.length, start = performance.now();
  const [rounds, seconds, budget] = [plan.rounds, plan.seconds, job.budget_s].map((value) => value / plan.processes);
  for (let round = first; ;) {
    shuffle(order, random);
    for (const turn of [order, [...order].reverse()]) {
      for (const index of turn) {
        const model = results[index];
        const at = (performance.now() - origin) / 1000;
        const answer = await workers[index].ask({ do: "time", samples: model.samples, calls: model.calls });
        model.blocks.push({ round, process, at, calls: model.calls, ns: answer.ns, switches: null });
        if (model.predictions) {
          model.checked++;
          if (model.predictions.classes[answer.input] !== answer.class) model.differed++;
        }
      }
      round++;
    }
    const spent = (performance.now() - start) / 1000;
    await show("latency", (process + Math.min(0.99, spent / Math.max(seconds, 1e-9))) / plan.processes);
    if (round - first < rounds || spent < seconds) continue;
    const share = budget ? spent / budget : 1;
    const unsettled = ({ blocks }) => worthWaitingFor(blocks.slice(first - round), plan.processes, share, rules);
    if (share >= 1 || !results.some(unsettled)) return;
  }
}

/** The number of samples per block, and of calls per sample. */
function blockOf({ call_ms: callMs, calls }) {
  return { calls, samples: Math.max(1, Math.round(job.plan.block_ms / (callMs * calls))) };
}

/** A few rounds with one thread, which reveal threads that wait for one another. */
async function timeWithOneThread(results, provider, clockMs, origin) {
  const workers = job.models.map((model) => startWorker(model, provider, 1, clockMs));
  try {
    const blocks = [];
    for (const [index, worker] of workers.entries()) {
      await show("one thread", index / workers.length);
      await worker.ready;
      await worker.ask({ do: "open", provider });
      blocks.push(blockOf(await worker.ask({ do: "prepare", count: job.images })));
    }
    const order = workers.map((_, index) => index);
    for (let round = 0; round < job.rules.one_thread_rounds; round++) {
      for (const index of round % 2 ? order : [...order].reverse()) {
        const at = (performance.now() - origin) / 1000, { samples, calls } = blocks[index];
        const { ns } = await workers[index].ask({ do: "time", samples, calls });
        results[index].one_thread.push({ round, process: 0, at, calls, ns, switches: null });
      }
    }
  } finally {
    for (const worker of workers) worker.end();
  }
}

function showResult(results) {
  for (const model of results) {
    const row = $("result").tBodies[0].insertRow();
    const times = model.blocks.map((block) => block.ns.reduce((sum, value) => sum + value, 0) / block.ns.length / block.calls / 1e6);
    const correct = model.predictions?.classes.filter((answer, index) => answer === job.targets?.[index]).length;
    row.insertCell().textContent = label(model.model);
    row.insertCell().textContent = `${median(times).toPrecision(3)} ms`;
    row.insertCell().textContent = job.targets ? `${correct} of ${job.images}` : "-";
  }
  $("result").hidden = false;
  $("stage").textContent = "done: the verdict is on the computer";
  $("bar").value = 1;
  $("advice").textContent = "This page can be closed.";
}

const heartbeat = setInterval(() => { if (performance.now() - lastBeat > 2000) post({ alive: true }).catch(() => {}); }, 1000);
navigator.wakeLock?.request("screen").catch(() => {});
try {
  job = await (await fetch("job.json")).json();
  $("models").textContent = job.models.map(label).join(", ");
  showResult(await measure());
} catch (error) {
  $("stage").textContent = error.message;
  $("stage").className = "bad";
  await post({ error: error.message }).catch(() => {});
} finally {
  clearInterval(heartbeat);
}
