"""Which models a call runs on: held from the catalogue until it ends."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Protocol

from mien_server.errors import at
from mien_server.models.analyser import ANALYSER, AnalyserOptions
from mien_server.models.interface import AnyRole
from mien_server.models.roles import DETECTOR
from mien_server.pipeline.requirements import Asked, Requirements, lease_asked
from mien_server.pipeline.selection import check_selection
from mien_server.pipeline.types import AlignedFace, FaceSelection, ImageSource, Limits, ModelRef
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.versions import Lease


class Models(Protocol):
    """Where the pipeline finds its models: the catalogue."""

    def hold(
        self, name: str, version: int, *, role: AnyRole, fingerprint: str
    ) -> AbstractAsyncContextManager[Lease]:
        """As `Catalogue.hold`."""
        ...

    def config(self, name: str, version: int, *, role: AnyRole, fingerprint: str) -> ModelConfig:
        """The configuration of what `hold` would give, which is not woken for it.

        Raises:
            ModelNotFound, ModelNotReady, InvalidRequest: as `hold` says.
        """
        ...

    def in_use(self, role: AnyRole) -> Mapping[str, Any]:
        """The options of the models of a role that serve, or should, by name."""
        ...


class Leasing:
    """Leases models for calls of the face service.

    Args:
        models: the model repository.
        defaults: by role, the name of the model for requests that name none.
        limits: what a call may ask for.
    """

    def __init__(self, models: Models, defaults: Mapping[AnyRole, str], limits: Limits) -> None:
        self._models = models
        self._defaults = defaults
        self._limits = limits

    def lease(
        self, ref: ModelRef, role: AnyRole, *, fingerprint: str = ""
    ) -> AbstractAsyncContextManager[Lease]:
        """As `Models.hold`, of the role's default where none is named."""
        name = ref.name or self._defaults[role]
        return self._models.hold(name, ref.version, role=role, fingerprint=fingerprint)

    async def finder(
        self,
        leases: AsyncExitStack,
        image: ImageSource,
        selection: FaceSelection,
        detector: ModelRef,
    ) -> Lease | None:
        """What finds the faces of a photo, of which some are selected; None of an aligned face."""
        if isinstance(image, AlignedFace):
            return None
        with at("selection"):
            check_selection(selection, self._limits)
        with at("detector"):
            return await leases.enter_async_context(self.lease(detector, DETECTOR))

    async def asked(
        self,
        leases: AsyncExitStack,
        named: Sequence[ModelRef],
        path: str,
        require: Requirements,
        *,
        aligned: bool,
    ) -> Asked:
        """The analysers of a call: `lease_asked`."""

        async def enter(ref: ModelRef) -> Lease:
            lease = self._models.hold(ref.name, ref.version, role=ANALYSER, fingerprint="")
            return await leases.enter_async_context(lease)

        return await lease_asked(enter, named, path, require, aligned=aligned)

    def by_default(self, *, aligned: bool) -> list[ModelRef]:
        """The analysers of callers that name none, by name."""
        found: Mapping[str, AnalyserOptions] = self._models.in_use(ANALYSER)
        return [
            ModelRef(name)
            for name, options in sorted(found.items())
            if options.by_default and not (aligned and options.crop.needs_photo)
        ]
