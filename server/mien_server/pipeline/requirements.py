"""What a caller demands of faces: that they are good enough, and what analysers say of them."""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mien_server.errors import InvalidRequest, ModelNotFound, ModelNotReady, Reason, Unmet, at
from mien_server.models.analyser import AnalyserOptions
from mien_server.pipeline.quality import overall, problems
from mien_server.pipeline.types import Analysis, Face, ModelRef, PhotoFaces
from mien_server.repository.versions import Lease, ReadyModel


@dataclass(frozen=True, slots=True)
class Demand:
    """What one analyser must say; the contract's AnalyserRequirement.

    Attributes:
        label: of a classification, whose probability counts; "" of others.
        at_least, at_most: None is no bound; one of them is there.
    """

    analyser: ModelRef
    label: str = ""
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Requirements:
    """What must hold of every face that a call is about; the contract's Requirements.

    Attributes:
        quality: whether they must pass the limits by which Enrol refuses faces.
        demands: on what analysers say.
        quality_at_least: what `overall` must give of their quality, in [0, 1]; None is no bound.
    """

    quality: bool = False
    demands: tuple[Demand, ...] = ()
    quality_at_least: float | None = None

    def __bool__(self) -> bool:
        return self.quality or bool(self.demands) or self.quality_at_least is not None


MAX_ANALYSERS = 16
"""That one call may ask, and may require something of."""


class Asked(NamedTuple):
    """The analysers of a call.

    Attributes:
        leases: of each, in the order of its answers: its own, and those that they are averaged with.
        places: of each demand, which of these it is about.
    """

    leases: list[list[Lease]]
    places: list[int]


def default_analysers(
    analysers: Mapping[str, AnalyserOptions], *, boxed: bool, aligned: bool
) -> list[ModelRef]:
    """The analysers of callers that name none, by name.

    Args:
        analysers: those that serve.
        boxed: whether those that see a face by its box can see these faces.
        aligned: whether those can that see it aligned.
    """

    def sees(name: str) -> bool:
        of_box = name in analysers and analysers[name].crop.needs_photo
        return boxed if of_box else aligned

    return [
        ModelRef(name)
        for name, options in sorted(analysers.items())
        if options.by_default and all(map(sees, (name, *options.average_with)))
    ]


async def lease_asked(
    lease: Callable[[ModelRef], Awaitable[Lease]],
    named: Sequence[ModelRef],
    path: str,
    requirements: Requirements,
    *,
    aligned: bool,
) -> Asked:
    """Leases the analysers of a call, each once.

    Args:
        lease: holds a version of an analyser.
        named: those that it asks, beside those that it requires something of.
        path: where in the request they are named; each has its number there if `[{}]` is in it.
        aligned: it is about an aligned crop.

    Raises:
        InvalidRequest: too many, or not such as can be asked this. ModelNotFound, ModelNotReady: of `lease`.
    """
    demands = requirements.demands
    for count, where in ((len(named), "analysers"), (len(demands), "require.analysers")):
        if count > MAX_ANALYSERS:
            raise InvalidRequest(
                Reason.INVALID_OPTION,
                f"{where}: {count} are more than {MAX_ANALYSERS}: send another request.",
                field=where,
            )
    least = requirements.quality_at_least
    if least is not None and not 0.0 <= least <= 1.0:
        raise InvalidRequest(
            Reason.INVALID_OPTION,
            f"require.quality_at_least: {least:g} is outside [0, 1], where qualities lie.",
            field="require.quality_at_least",
        )
    leases: list[list[Lease]] = []
    places: dict[ModelRef, int] = {}

    async def hold(ref: ModelRef) -> None:
        held = await _lease_averaged(lease, ref)
        if aligned and any(each.model.config.options.crop.needs_photo for each in held):
            raise InvalidRequest(
                Reason.INVALID_OPTION,
                f"{ref.name} sees more of a photo than an aligned crop has: send the photo.",
            )
        places.setdefault(ref, len(leases))
        leases.append(held)

    for number, ref in enumerate(named):
        with at(path.format(number)):
            await hold(ref)
    for number, demand in enumerate(demands):
        with at(f"require.analysers[{number}]"):
            if demand.analyser not in places:
                with at("analyser"):
                    await hold(demand.analyser)
            _check_demand(demand, leases[places[demand.analyser]][0].model)
    return Asked(leases, [places[demand.analyser] for demand in demands])


async def _lease_averaged(
    lease: Callable[[ModelRef], Awaitable[Lease]], ref: ModelRef
) -> list[Lease]:
    """An analyser, and those that its configuration has its answers averaged with.

    Raises:
        ModelNotReady: also if one of the others cannot be asked, or tells something else.
    """
    held = [await lease(ref)]
    model = held[0].model
    options: AnalyserOptions = model.config.options
    for name in options.average_with:
        what = f"model {model.name!r} averages its answers with those of {name!r}"
        try:
            other = await lease(ModelRef(name))
        except (InvalidRequest, ModelNotFound, ModelNotReady) as error:
            lasting = not isinstance(error, ModelNotReady) or error.lasting
            raise ModelNotReady(f"{what}: {error.message}", lasting=lasting) from error
        ours, theirs = _told(model), _told(other.model)
        if ours != theirs:
            raise ModelNotReady(
                f"{what}, which gives {theirs}, and not {ours}: mend average_with in its config.pbtxt",
                lasting=True,
            )
        held.append(other)
    return held


def _told(model: ReadyModel) -> str:
    """What must be the same of analysers whose answers are averaged."""
    options: AnalyserOptions = model.config.options
    (count,) = model.config.outputs[0].dims
    words = options.unit or ", ".join(options.labels)
    return f"a {options.kind} [{count}]{f' ({words})' if words else ''}"


def _check_demand(demand: Demand, model: ReadyModel) -> None:
    """Checks that an analyser can be asked for this.

    Raises:
        InvalidRequest: it has no such number, or a bound is missing or none.
    """
    options: AnalyserOptions = model.config.options
    bounds = [bound for bound in (demand.at_least, demand.at_most) if bound is not None]
    problem = ""
    if not bounds or not all(math.isfinite(bound) for bound in bounds):
        problem = "give at_least or at_most, finite numbers"
    elif options.kind == "points":
        problem = f"{model.name} gives points, of which nothing can be demanded"
    elif options.kind == "classification" and demand.label not in options.labels:
        problem = f"label must be one of {', '.join(options.labels)}, as {model.name} has them"
    elif options.kind != "classification" and demand.label:
        problem = f"{model.name} gives a {options.kind}, which has no label"
    if problem:
        raise InvalidRequest(Reason.INVALID_OPTION, f"A requirement cannot be met: {problem}.")


def check_met(requirements: Requirements, faces: Sequence[Face], places: Sequence[int]) -> None:
    """Looks whether every face fulfils what is required.

    Args:
        faces: with their quality and analyses.
        places: of each demand, which of a face's analyses it is about.

    Raises:
        Unmet: REQUIREMENT_UNMET, with the figures of the first face that does not.
    """
    for number, face in enumerate(faces):
        unmet = []
        if requirements.quality and face.quality is not None:
            unmet += [f"it is {issue}" for issue in problems(face.quality)]
        least = requirements.quality_at_least
        if least is not None and face.quality is not None and overall(face.quality) < least:
            unmet.append(f"its quality is {overall(face.quality):.3f}, {least:g} or more passes")
        for demand, place in zip(requirements.demands, places, strict=True):
            unmet += _unmet(demand, face.analyses[place])
        if unmet:
            which = "The face" if len(faces) == 1 else f"Face {number + 1} of {len(faces)}"
            raise Unmet(
                Reason.REQUIREMENT_UNMET,
                f"{which} does not fulfil what the request requires: {'; '.join(unmet)}.",
            )


def _unmet(demand: Demand, analysis: Analysis) -> list[str]:
    index = analysis.labels.index(demand.label) if demand.label else 0
    value = float(analysis.values[index])
    what = f"{analysis.model.name} says {demand.label + ' ' if demand.label else ''}{value:.3f}"
    found = []
    if demand.at_least is not None and not value >= demand.at_least:
        found.append(f"{what}, {demand.at_least:g} or more passes")
    if demand.at_most is not None and not value <= demand.at_most:
        found.append(f"{what}, {demand.at_most:g} or less passes")
    return found


def with_named(found: PhotoFaces, count: int) -> PhotoFaces:
    """Without what those analysers say that are only required to say something, who come last."""
    faces = [replace(face, analyses=face.analyses[:count]) for face in found.faces]
    return replace(found, faces=faces)
