"""Figures as text, the same in the terminal and on the page."""

from collections.abc import Sequence

from ...deploy.environment import UNAVAILABLE
from ...deploy.runtimes.runtime import PRECISION, options_text
from .host_answers import unexplained
from .model_schema import DropEntry, Identity, MeasuredModel, Model, Ratio
from .noise import load_text
from .report_schema import ComparisonRow, Document, JoinedReport, Noisy, Report
from .scenario_schema import SustainedEntry

# Rounding error of a ratio of two figures with three digits.
_ROUNDING = 0.01

# Follows the recommended model, before its speed-up over each other candidate.
FASTEST = ", the fastest that meets the contract"

# Characters of the longest text to show in full; longer ones are folded or shortened.
LONG = 300

# Minutes of a long run to list; the page lists all.
_MINUTES_SHOWN = 10


def subject(report: Report) -> str:
    """A title: the models' common name, if any, and the devices."""
    names = {model["name"] for model in report["models"]}
    shared = [names.pop()] if len(names) == 1 else []
    device = report["device"]
    hardware = [name for name in (device.get("board"), device.get("cpu")) if name not in (None, UNAVAILABLE)]
    return ", ".join([*shared, *hardware, f"{report['images']} test images"])


def headline_of(document: Document) -> str:
    """The speed of the candidates against the models they replace: the first line of any output."""
    if "devices" in document:
        return "; ".join(f"{report['device']['name']}: {report['headline']}" for report in document["devices"])
    if "rows" in document:
        changes = [
            f"{model_name(row)} against {row['against']['report']}: {speedup_text(row['against']['speedup'])} "
            f"{row['against']['outcome']}"
            for row in document["rows"]
        ]
        # not slower than before does not mean faster than the model that it replaces
        optimised = all(row["outcome"] in (None, "faster") for row in document["rows"])
        return "; ".join([*([] if optimised else [document["headline"]]), *changes])
    return document["headline"]


def model_names(report: Report) -> dict[str, str]:
    """Map each model's id to its short name, without the part that all models share."""
    return names_of(report["models"])


def names_of(models: Sequence[Identity]) -> dict[str, str]:
    """Like `model_names`, for models that are not in a report yet."""
    shared = len({model["name"] for model in models}) == 1
    return {model["id"]: f"{model['precision']} {_runtime(model)}" if shared else model_name(model) for model in models}


def model_name(model: Identity) -> str:
    """Name, format and precision."""
    return f"{model['name']} {model['precision']} ({_runtime(model)})"


def _runtime(model: Identity) -> str:
    """The model's runtime, with the options chosen for it."""
    name = model["session"].get("runtime", model["format"])
    options = {
        option: value
        for option, value in model.get("runtime_options", {}).items()
        if (option, value) != (PRECISION, model["precision"])
    }
    return f"{name} {options_text(options)}" if options else name


def megabytes(size: int | None) -> str:
    """Bytes as MB (10^6)."""
    return "-" if size is None else f"{size / 1e6:.2f} MB"


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return "-" if share is None else f"{100 * share:.2f} %"


def drop_text(drop: DropEntry | None) -> str:
    """Percentage points lost, with the interval."""
    return "-" if drop is None else f"{drop['points']:+.2f} [{drop['low']:+.2f}, {drop['high']:+.2f}]"


def speedup_text(speedup: Ratio | None) -> str:
    """A ratio with the interval, and the contradicting ratio with one thread if there is one."""
    if speedup is None:
        return "-"
    text = f"{speedup['ratio']:.2f}x [{speedup['low']:.2f}, {speedup['high']:.2f}]"
    return text if "one_thread" not in speedup else f"{text} ({speedup['one_thread']:.2f}x with one thread)"


def milliseconds(value: float | None) -> str:
    """Milliseconds, three significant digits."""
    return "-" if value is None else f"{value:.3g} ms"


def share(value: float) -> str:
    """A share as a percentage with two significant digits."""
    return f"{100 * value:.2g} %"


def percentile_text(model: Model, name: str) -> str:
    """A percentile with its upper bound; a dash for too few samples."""
    value, upper = model["latency_ms"][name], model["latency_upper_ms"][name]
    return "-" if value is None else f"{milliseconds(value)} (≤ {milliseconds(upper)})"


def against_lines(report: Report) -> list[str]:
    """Each candidate against its counterpart in an earlier report."""
    names, lines = model_names(report), []
    for model in report["models"]:
        if (against := model.get("against")) is not None:
            drop = f", drop {drop_text(against['drop'])} points" if against["drop"] else ""
            lines.append(
                f"{names[model['id']]} against {against['report']}: {speedup_text(against['speedup'])} "
                f"{against['outcome']}{drop}; {against['how']}"
            )
    return lines


def host_lines(report: Report) -> list[str]:
    """Each model's answers on the device compared with the host's, image by image."""
    names, lines = model_names(report), []
    for model in report["models"]:
        if (host := model["host"]) is None:
            continue
        text = f"logits within {host['logits_max_abs']:.2g} on the golden samples"
        if not host["differ"]:
            lines.append(f"{names[model['id']]}: all {host['images']} answers match the host's, {text}")
            continue
        shown = ", ".join(
            f"{answer['id']} ({answer['host']} → {answer['device']}, {answer['gap']:.2g} apart)"
            for answer in host["differ"][:5]
        )
        more = f" and {len(host['differ']) - 5} more" if len(host["differ"]) > 5 else ""
        near_ties = len(host["differ"]) - unexplained(host)
        lines.append(
            f"{names[model['id']]}: {len(host['differ'])} of {host['images']} answers differ from the host's, "
            f"{near_ties} of them near ties ({text}): {shown}{more}"
        )
    return lines


def thread_lines(report: Report) -> list[str]:
    """The number of threads and the reason, if a busy machine left fewer than all cores."""
    device = report["device"]
    used, allowed, got = device.get("threads"), device.get("cores_allowed"), device.get("cores_got")
    if not (used and allowed and isinstance(got, int | float) and got > 0):
        return []
    if report["plan"].get("threads") or used >= allowed:
        return []
    load = load_text({"cores_allowed": allowed, "cores_got": got})
    return [f"measured with {used} of {allowed} threads: {load} (--threads {allowed} uses all)"]


def noise_summary(document: Noisy) -> list[str]:
    """One sentence on a noisy run, none on a quiet one."""
    names = ", ".join(dict.fromkeys(signal["name"] for signal in document["noise"]))
    return (
        [f"noisy run ({names}): this widens the intervals; measure on a quieter machine to narrow them"]
        if names
        else []
    )


def noise_details(document: Noisy) -> list[str]:
    """The folded details of each signal."""
    return [f"{signal['name']}: {signal['detail']}" for signal in document["noise"]]


def overlap_lines(report: Report) -> list[str]:
    """Notes on test images that the models were made with; earlier reports have none."""
    if not (overlap := report.get("overlap")):
        return []
    lines = []
    if overlap["unchecked"]:
        lines.append(
            "cannot check whether the models have seen test images: no fingerprints of images in "
            f"{', '.join(overlap['unchecked'])}"
        )
    if overlap["excluded"]:
        lines.append(
            f"{overlap['excluded']} test images are left out, because a model was made with identical ones: "
            f"{_first(overlap['excluded_ids'], overlap['excluded'])}"
        )
    if overlap["near_duplicates"]:
        compared, total = overlap["searched"]
        pairs = [f"{pair['id']} like {pair['other']}" for pair in overlap["pairs"]]
        lines.append(
            f"{overlap['near_duplicates']} of {report['images']} test images look like ones that a model was made with "
            f"({compared} of {total} compared): {_first(pairs, overlap['near_duplicates'])}"
        )
    return lines


def _first(entries: Sequence[str], count: int) -> str:
    shown = entries[:3]
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def warning_lines(report: Report) -> list[str]:
    """Each warning once, after the names of its models."""
    names, models = model_names(report), report["models"]
    names_by_warning: dict[str, list[str]] = {}
    for model in models:
        for warning in model["warnings"]:
            names_by_warning.setdefault(warning, []).append(names[model["id"]])
    return overlap_lines(report) + [
        f"{'all models' if len(affected) == len(models) > 1 else ', '.join(affected)}: {warning}"
        for warning, affected in names_by_warning.items()
    ]


def scenario_lines(report: Report) -> list[str]:
    """Results of the scenarios other than the single stream, one line per model."""
    names, lines = model_names(report), []
    for model in report["models"]:
        name = names[model["id"]]
        if (offline := model["offline"]) is not None:
            best = next(size for size in offline["sizes"] if size["batch"] == offline["best_batch"])
            lines.append(
                f"{name}, offline: {best['images_per_s']:.0f} images/s [{best['low']:.0f}, {best['high']:.0f}] "
                f"at its best batch size, {best['batch']}"
            )
        if (frames := model["frames"]) is not None:
            missed = frames["missed_share"]
            text = (
                f"{name}, {frames['fps']:g} images/s offered: {frames['missed']} of {frames['offered']} missed "
                f"their deadline, {share(missed['value'])} [{share(missed['low'])}, {share(missed['high'])}]"
            )
            if frames["latency_ms"]["p99"] is not None:
                text += f"; p99 {milliseconds(frames['latency_ms']['p99'])} from file to answer"
            lines.append(text)
        if (sustained := model["sustained"]) is not None:
            lines.append(f"{name}, {_sustained_text(sustained)}")
    return lines


def _sustained_text(sustained: SustainedEntry) -> str:
    """The result of a long run; at a fixed rate, it begins with the sustained rate."""
    trend = f"{sustained['slope_per_minute']:+.1%} per minute" if sustained["trend_p"] < 0.01 else "no trend"
    text = (
        f"{milliseconds(sustained['first_ms'])} at first, approaching {milliseconds(sustained['steady_ms'])} ({trend})"
    )
    if (rate := sustained.get("rate")) is None:
        return f"sustained: {text}"
    minutes = sustained["minutes"]
    result = "holds" if rate["missed"] == 0 else f"answers {rate['held_fps']:.3g} images/s in its worst minute of"
    missed = ", ".join(str(minute.get("missed", 0)) for minute in minutes[:_MINUTES_SHOWN])
    more = ", …" if len(minutes) > _MINUTES_SHOWN else ""
    by_minute = f", by minute {missed}{more}" if len(minutes) > 1 else ""
    return (
        f"sustained: {result} the {rate['fps']:g} images/s offered; {rate['missed']} of {rate['offered']} missed their "
        f"deadline ({rate['dropped']} dropped{by_minute}); from file to answer {text}"
    )


def drop_cell(model: Model, report: Report) -> str:
    """The drop against the source; "source" for the source itself."""
    return "source" if model["id"] == report["baseline"] else drop_text(model["drop"])


def speedup_cell(model: Model) -> str:
    """The speed-up over the fastest unoptimised model; "reference" for that model itself."""
    return "reference" if model["speedup"] is None else f"{speedup_text(model['speedup'])} {model['outcome']}"


def mean_text(model: MeasuredModel | ComparisonRow) -> str:
    """The latency behind speed-ups: the mean of complete blocks, not the median of calls."""
    return milliseconds(model["time_ms"]["value"])


# The columns of every table of models.
MODEL_COLUMNS = ("model", "top-1", "drop, points", "mean latency", "speed-up")
DEVICE_COLUMNS = ("device", *MODEL_COLUMNS)


def device_rows(document: JoinedReport) -> list[list[str]]:
    """The models on each of several devices, in DEVICE_COLUMNS."""
    return [row for report in document["devices"] for row in report_rows(report)]


def report_rows(report: Report) -> list[list[str]]:
    """The models of one device, in DEVICE_COLUMNS."""
    return [[report["device"]["name"], *row] for row in model_rows(report)]


def model_rows(report: Report) -> list[list[str]]:
    """The models of a report, in MODEL_COLUMNS."""
    names = model_names(report)
    return [
        [names[model["id"]], percent(model["top1"]), drop_cell(model, report), mean_text(model), speedup_cell(model)]
        for model in report["models"]
    ]


def noisy_devices(document: JoinedReport) -> list[str]:
    """The noisy devices and their signals; each device's report has the details."""
    return [
        f"noisy run on {report['device']['name']}: {', '.join(names)}"
        for report in document["devices"]
        if (names := dict.fromkeys(signal["name"] for signal in report["noise"]))
    ]


def agreement_lines(document: JoinedReport) -> list[str]:
    """Whether several devices agree on each image, and the devices without a report."""
    lines = [
        f"{failure['device']} gave no report: {failure['error']} ({failure['fix']})" for failure in document["failed"]
    ]
    for entry in document["agreement"]:
        if entry["images"] is None:
            lines.append(f"{model_name(entry)}: not compared image by image, because the images differ")
            continue
        shown = ", ".join(f"{image['id']} ({', '.join(image['answers'])})" for image in entry["differ"][:5])
        same = entry["images"] - len(entry["differ"])
        lines.append(
            f"{model_name(entry)}: {same} of {entry['images']} answers are the same on all devices"
            + (f"; these differ: {shown}" if shown else "")
        )
    return lines


def engine_lines(report: Report) -> list[str]:
    """Engine layers, times of copies and compute on the GPU, and the placement of operators."""
    names, lines = model_names(report), []
    for model in report["models"]:
        name = names[model["id"]]
        if engine := model.get("engine"):
            kinds = ", ".join(f"{count} {precision}" for precision, count in engine["precisions"].items())
            lines.append(f"{name}: {len(engine['layers'])} layers: {kinds}, {engine['reformats']} only reformat")
        if stages := model.get("stages_ms"):
            parts = ", ".join(f"{stage.replace('_', ' ')} {milliseconds(value)}" for stage, value in stages.items())
            lines.append(f"{name}, timed by the GPU: {parts}")
        if placement := model["session"].get("placement"):
            parts = ", ".join(f"{count} operators on {provider}" for provider, count in placement.items())
            lines.append(f"{name}: {parts}")
    return lines


def recommendation_lines(report: Report | JoinedReport, *, short: bool = False) -> list[str]:
    """The recommended candidate, on each device.

    Args:
        short: omit its speed-up over each other candidate.
    """
    if "devices" in report:
        return [
            f"{device_report['device']['name']}: {line}"
            for device_report in report["devices"]
            for line in recommendation_lines(device_report, short=short)
        ]
    if (recommendation := report.get("recommendation")) is None:
        return []
    sentence = recommendation["sentence"]
    advice, fastest, _ = sentence.partition(FASTEST)
    return [advice + fastest if short else sentence]


def ratio_lines(report: Report) -> list[str]:
    """The reason for each speed-up that is not the ratio of the mean latencies in the table."""
    names, models = model_names(report), {model["id"]: model for model in report["models"]}
    lines = []
    for model in report["models"]:
        if model["speedup"] is None or model["speed_baseline"] is None:
            continue
        times = [entry["time_ms"]["value"] for entry in (models[model["speed_baseline"]], model)]
        ratio, shown = model["speedup"]["ratio"], times[0] / times[1]
        if abs(shown - ratio) > _ROUNDING * ratio:
            lines.append(
                f"{names[model['id']]}: {milliseconds(times[0])} over {milliseconds(times[1])} is {shown:.2f}x; the "
                f"speed-up of {ratio:.2f}x compares only blocks of the same round, because the machine's speed changed"
            )
    return lines


def speedups(report: Report) -> list[str]:
    """Speed-ups of each candidate over the other models: the source and the intermediate steps."""
    names = model_names(report)
    lines = []
    for model in report["models"]:
        for baseline, ratio in model.get("speedup_over", {}).items():
            if "judgements" in model and baseline != model["speed_baseline"]:
                lines.append(f"{names[model['id']]} against {names[baseline]}: {speedup_text(ratio)}")
    return lines
