"""Which bundle is measured on which runtime."""

from collections.abc import Collection, Sequence

from ...deploy.bundle import Bundle
from ...deploy.errors import BundleError, DeviceError, RecipeError
from ...deploy.measuring.plan import Candidate
from ...deploy.runtimes.runtime import Choice, default_runtime, runtime_named


def candidates_of(
    chain: Sequence[Bundle], judged: Collection[str], choices: Sequence[Choice], available: Collection[str], device: str
) -> tuple[Candidate, ...]:
    """Each bundle on each runtime chosen that opens its format; an ancestor that none opens runs on its default.

    Args:
        chain: the bundles measured, the source first.
        judged: ids of those that the user named to be judged.
        choices: the runtimes; empty for the default of each bundle's format, without options.
        there: names of the runtimes that `device` has.

    Raises:
        DeviceError: the device lacks a runtime chosen.
        RecipeError: a choice is named twice.
        BundleError: a runtime opens no bundle that is judged, or such a bundle is opened by none.
    """
    texts = [str(choice) for choice in choices]
    for text in texts:
        if texts.count(text) > 1:
            raise RecipeError(f"--runtime {text} is named twice", fix="name it once")
    for choice in choices:
        if choice.name not in available:
            raise DeviceError(
                f"{device} cannot run {choice.name}: it runs {', '.join(sorted(available)) or 'nothing'}",
                fix="leave it out; edgekit doctor shows how to install a runtime",
            )
    named = [bundle for bundle in chain if bundle.id in judged]
    for choice in choices:
        opened = runtime_named(choice.name).formats
        if not any(bundle.manifest.format in opened for bundle in named):
            kinds = ", ".join(dict.fromkeys(bundle.manifest.format for bundle in named))
            raise BundleError(
                f"{choice.name} opens {', '.join(opened)}; the bundles are {kinds}",
                fix=f"leave out --runtime {choice}",
            )
    return tuple(candidate for bundle in chain for candidate in _of_bundle(bundle, choices, judged=bundle.id in judged))


def _of_bundle(bundle: Bundle, choices: Sequence[Choice], *, judged: bool) -> list[Candidate]:
    """A bundle on each runtime that opens it."""
    if not choices:
        return [Candidate(bundle.id)]
    kind = bundle.manifest.format
    default = default_runtime(kind).name
    fitting = [choice for choice in choices if kind in runtime_named(choice.name).formats]
    if judged and not fitting:
        raise BundleError(f"{bundle.path} is {kind}, which no runtime named opens", fix=f"add --runtime {default}")
    # in reports, the default without options has the bundle's id alone
    chosen = [None if choice == Choice(default) else choice for choice in fitting] or [None]
    return [Candidate(bundle.id, choice) for choice in chosen]


def runtimes_of(chain: Sequence[Bundle], candidates: Sequence[Candidate]) -> list[str]:
    """The names of the runtimes that run these candidates."""
    kinds = {bundle.id: bundle.manifest.format for bundle in chain}
    return [one.choice.name if one.choice else default_runtime(kinds[one.bundle]).name for one in candidates]
