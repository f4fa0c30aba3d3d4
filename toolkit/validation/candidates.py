"""Which bundle is measured on which runtime."""

from collections.abc import Collection, Sequence

from ...deploy.bundle import Bundle
from ...deploy.devices.device import how_to_install
from ...deploy.errors import BundleError, DeviceError, RecipeError
from ...deploy.measuring.plan import Candidate
from ...deploy.runtimes.runtime import PRECISION, Choice, default_runtime, runtime_named


def candidates_of(
    chain: Sequence[Bundle], judged: Collection[str], choices: Sequence[Choice], available: Collection[str], device: str
) -> tuple[Candidate, ...]:
    """Each bundle on each chosen runtime that opens its format; an ancestor that none opens runs on its default.

    Args:
        chain: the bundles to measure, the source first.
        judged: ids of the bundles that the user wants judged.
        choices: the chosen runtimes; empty for the default of each bundle's format, without options.
        available: names of the runtimes that `device` has.

    Raises:
        DeviceError: the device lacks a chosen runtime.
        RecipeError: a choice is named twice.
        BundleError: a chosen runtime opens none of the judged bundles, or a judged bundle is not opened by any.
    """
    texts = [str(choice) for choice in choices]
    for text in texts:
        if texts.count(text) > 1:
            raise RecipeError(f"--runtime {text} is named twice", fix="name it once")
    for choice in choices:
        if choice.name not in available:
            how = how_to_install(device, choice.name)
            raise DeviceError(
                f"{device} cannot run {choice.name}: it runs {', '.join(sorted(available)) or 'nothing'}",
                fix=f"{how}; or leave out --runtime {choice}" if how else f"leave out --runtime {choice}",
            )
    named = [bundle for bundle in chain if bundle.id in judged]
    for choice in choices:
        formats = runtime_named(choice.name).formats
        if not any(bundle.manifest.format in formats for bundle in named):
            kinds = ", ".join(dict.fromkeys(bundle.manifest.format for bundle in named))
            raise BundleError(
                f"{choice.name} opens {', '.join(formats)}; the bundles are {kinds}",
                fix=f"leave out --runtime {choice}",
            )
    return tuple(candidate for bundle in chain for candidate in _of_bundle(bundle, choices, judged=bundle.id in judged))


def optimised(candidates: Sequence[Candidate], bundles: Sequence[Bundle], source: Bundle) -> list[Candidate]:
    """Those of the candidates that compute in a lower precision than the source."""
    own, precisions = source.manifest.precision, {bundle.id: bundle.manifest.precision for bundle in bundles}
    return [
        candidate
        for candidate in candidates
        if candidate.bundle in precisions and candidate.precision(precisions[candidate.bundle]) != own
    ]


def with_baseline(candidates: Sequence[Candidate], chain: Sequence[Bundle]) -> tuple[Candidate, ...]:
    """The candidates, after the source in its own precision if it is only measured in a lower one.

    Losses of accuracy are relative to the first model, which must not be an optimised one.
    """
    source = chain[0]
    own = [candidate for candidate in candidates if candidate.bundle == source.id]
    if any(candidate.precision(source.manifest.precision) == source.manifest.precision for candidate in own):
        return tuple(candidates)
    first = _in_own_precision(own[0].choice or Choice(default_runtime(source.manifest.format).name))
    return (_candidate(source, first), *candidates)


def _in_own_precision(choice: Choice) -> Choice:
    return Choice(choice.name, {name: value for name, value in choice.options.items() if name != PRECISION})


def _candidate(bundle: Bundle, choice: Choice) -> Candidate:
    """In reports, the format's default without options has the bundle's id alone."""
    return Candidate(bundle.id, None if choice == Choice(default_runtime(bundle.manifest.format).name) else choice)


def _of_bundle(bundle: Bundle, choices: Sequence[Choice], *, judged: bool) -> list[Candidate]:
    """A bundle on each chosen runtime that opens it."""
    if not choices:
        return [Candidate(bundle.id)]
    kind = bundle.manifest.format
    default = default_runtime(kind).name
    fitting = [choice for choice in choices if kind in runtime_named(choice.name).formats]
    if judged and not fitting:
        raise BundleError(
            f"{bundle.path} is {kind}, which none of the named runtimes opens", fix=f"add --runtime {default}"
        )
    if not judged:  # it is only compared with, as what it is
        fitting = [_in_own_precision(choice) for choice in fitting]
    chosen = {str(choice): choice for choice in fitting or [Choice(default)]}
    return [_candidate(bundle, choice) for choice in chosen.values()]


def runtimes_of(chain: Sequence[Bundle], candidates: Sequence[Candidate]) -> list[str]:
    """The names of the runtimes that run these candidates."""
    kinds = {bundle.id: bundle.manifest.format for bundle in chain}
    return [entry.choice.name if entry.choice else default_runtime(kinds[entry.bundle]).name for entry in candidates]
