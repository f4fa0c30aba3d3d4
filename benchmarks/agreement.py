"""Compare EdgeKit's latency with the methods of other tools, for one model on one machine.

    python benchmarks/agreement.py BUNDLE... [--runtime openvino|litert] [--threads 1 2] [--repeats 6] [--seconds 4]

Each BUNDLE is of a format that the runtime opens. In every repeat the methods take turns, each in fresh processes, on
the same runtime with the same options. On ONNX Runtime:

- perf_test: like onnxruntime_perf_test: one random input, one untimed call, the median of the rest;
- benchmark_app: like OpenVINO's benchmark_app with `-api sync`: one request, random data, one untimed call, the median
  of the calls in a fixed time (only its method);
- EdgeKit: the p50 of `validate`.

On OpenVINO, benchmark_app is the tool itself, from the same package; on LiteRT, litert-benchmark is.

Prints one row per model and thread count: the medians, and the ratio of EdgeKit's to each peer's with Student's 95 %
interval.
"""

import argparse
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.environment import describe
from edgekit.deploy.measuring.plan import Candidate, Plan
from edgekit.deploy.progress import silent
from edgekit.deploy.runtimes.runtime import Choice
from edgekit.toolkit.analysis.statistics import exponential, student_mean

PEER = """
import sys, time
import numpy as np, onnxruntime
method, path, threads, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
entry = session.get_inputs()[0]
data = np.random.default_rng(0).random([d if isinstance(d, int) else 1 for d in entry.shape], np.float32)
feed = {entry.name: data}
session.run(None, feed)
times, end = [], time.perf_counter() + seconds
if method == "perf_test":
    start = time.perf_counter()
    session.run(None, feed)
    for _ in range(max(20, int(seconds / (time.perf_counter() - start)))):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
else:
    while time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
print(1e3 * float(np.median(times)))
"""


def _peer(method: str, bundle: Bundle, threads: int, seconds: float) -> float:
    arguments = [method, str(bundle.model_path), str(threads), str(seconds)]
    done = subprocess.run([sys.executable, "-c", PEER, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout)


def _benchmark_app(bundle: Bundle, threads: int, seconds: float) -> float:
    """The median of OpenVINO's own tool."""
    program = Path(sys.executable).parent / "benchmark_app"
    arguments = [
        str(program), "-m", str(bundle.model_path), "-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1",
        "-nthreads", str(threads), "-infer_precision", "f32", "-pin", "NO", "-t", str(max(1, round(seconds))),
    ]  # fmt: skip
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    (median,) = re.findall(r"Median:\s+([\d.]+) ms", done.stdout)
    return float(median)


def _litert_benchmark(bundle: Bundle, threads: int, seconds: float) -> float:
    """The median of LiteRT's own tool, which rounds it to 0.01 ms."""
    program = Path(sys.executable).parent / "litert-benchmark"

    def run(calls: int) -> float:
        arguments = [str(program), "--model", str(bundle.model_path), "--num_threads", str(threads)]
        done = subprocess.run([*arguments, "--num_runs", str(calls)], check=True, capture_output=True, text=True)
        (median,) = re.findall(r"Inference \(median\):\s+([\d.]+) ms", done.stdout)
        return float(median)

    return run(max(50, round(1e3 * seconds / max(run(20), 0.01))))


def _edgekit(bundle: Bundle, runtime: str, threads: int, seconds: float, seed: int) -> float:
    candidates = (Candidate(bundle.id, Choice(runtime)),)
    plan = Plan(seconds=seconds, processes=3, threads=threads, seed=seed, candidates=candidates)
    (measurement,) = open_device("local").measure([bundle], plan, None, silent).measurements
    return float(np.median([value for block in measurement.blocks for value in block.call_ms]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino", "litert"], default="onnxruntime")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores_allowed']} cores allowed, {machine['system']}, {machine['versions']}\n")
    peers = {
        "onnxruntime": ["perf_test", "benchmark_app"],
        "openvino": ["benchmark_app"],
        "litert": ["litert-benchmark"],
    }[arguments.runtime]
    print(f"| model | threads | {' | '.join(peers)} | EdgeKit | {' | '.join(f'over {peer}' for peer in peers)} |")
    print(f"|{'---|' * (3 + 2 * len(peers))}")
    for path in arguments.bundles:
        bundle = Bundle.open(path)
        for threads in arguments.threads:
            times: dict[str, list[float]] = {method: [] for method in (*peers, "edgekit")}
            for repeat in range(arguments.repeats):
                for method in random.Random(repeat).sample(list(times), len(times)):
                    if method == "edgekit":
                        times[method].append(_edgekit(bundle, arguments.runtime, threads, arguments.seconds, repeat))
                    elif arguments.runtime == "openvino":
                        times[method].append(_benchmark_app(bundle, threads, arguments.seconds))
                    elif arguments.runtime == "litert":
                        times[method].append(_litert_benchmark(bundle, threads, arguments.seconds))
                    else:
                        times[method].append(_peer(method, bundle, threads, arguments.seconds))
            cells = [f"{np.median(values):.4g} ms" for values in times.values()]
            for peer in peers:
                logs = [math.log(own / other) for own, other in zip(times["edgekit"], times[peer], strict=True)]
                ratio = exponential(student_mean(logs))
                cells.append(f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]")
            print(
                f"| {bundle.manifest.name} {bundle.manifest.precision} | {threads} | {' | '.join(cells)} |", flush=True
            )


if __name__ == "__main__":
    main()
