"""Which bundle is measured on which runtime."""

from collections.abc import Collection, Sequence

from ...deploy.bundle import Bundle
from ...deploy.errors import BundleError, DeviceError, RecipeError
from ...deploy.measuring.plan import Candidate
from ...deploy.runtimes.runtime import Choice, default_runtime, runtime_named


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
            raise DeviceError(
                f"{device} cannot run {choice.name}: it runs {', '.join(sorted(available)) or 'nothing'}",
                fix=f"leave out --runtime {choice}; edgekit doctor shows how to install a runtime",
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
    # in reports, the default without options has only the bundle's id
    chosen = [None if choice == Choice(default) else choice for choice in fitting] or [None]
    return [Candidate(bundle.id, choice) for choice in chosen]


def runtimes_of(chain: Sequence[Bundle], candidates: Sequence[Candidate]) -> list[str]:
    """The names of the runtimes that run these candidates."""
    kinds = {bundle.id: bundle.manifest.format for bundle in chain}
    return [entry.choice.name if entry.choice else default_runtime(kinds[entry.bundle]).name for entry in candidates]
