"""The one table of what a caller needs for each method.

A method that is served and not in the table is refused to everybody as soon as callers have to prove who they
are: whoever adds a method adds its line here, and docs/security.md repeats the table.
"""

from collections.abc import Iterable
from enum import StrEnum


class CallerRole(StrEnum):
    """What a caller may do. A caller has one or several; `ADMIN` has `READ` in it, no other has another."""

    INFER = "infer"
    ENROL = "enrol"
    READ = "read"
    ADMIN = "admin"


ROLES = ", ".join(CallerRole)

OPEN = "open"
"""What a method needs that answers everybody: probes carry no credentials."""

_FACES = "/mien.v1.FaceService/"
_GALLERY = "/mien.v1.GalleryService/"
_TRITON = "/inference.GRPCInferenceService/"
_HEALTH = "/grpc.health.v1.Health/"
_REFLECTION = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"

METHODS: dict[str, CallerRole | str] = {
    **{_FACES + method: CallerRole.INFER for method in ("Detect", "Embed", "Verify", "Analyze")},
    _GALLERY + "Identify": CallerRole.INFER,
    **{
        _GALLERY + method: CallerRole.READ
        for method in (
            *("ListCollections", "GetCollection"),
            *("ListPersons", "GetPerson", "ListFaces", "GetFace", "Group"),
        )
    },
    **{
        _GALLERY + method: CallerRole.ENROL
        for method in (
            *("CreateCollection", "DeleteCollection"),
            *("Enrol", "MoveFaces", "DeleteFaces", "DeletePerson", "Reembed"),
        )
    },
    # It hands out what faces can be recognised by, anywhere.
    _GALLERY + "ExportFaces": CallerRole.ADMIN,
    # It shows a face to people, which may have been enrolled for a machine only.
    _GALLERY + "GetCrop": CallerRole.ADMIN,
    **{_TRITON + method: OPEN for method in ("ServerLive", "ServerReady")},
    **{_TRITON + method: CallerRole.INFER for method in ("ModelInfer", "ModelStreamInfer")},
    **{
        _TRITON + method: CallerRole.READ
        for method in (
            *("ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig"),
            *("ModelStatistics", "RepositoryIndex"),
        )
    },
    **{
        _TRITON + method: CallerRole.ADMIN
        for method in (
            *("RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"),
            *(
                f"{kind}SharedMemory{what}"
                for kind in ("System", "Cuda")
                for what in ("Status", "Register", "Unregister")
            ),
        )
    },
    **{_HEALTH + method: OPEN for method in ("Check", "Watch")},
    **{_REFLECTION.format(version): CallerRole.READ for version in ("v1", "v1alpha")},
}
"""Path of a method, /package.Service/Method: the role that it needs, or `OPEN`."""

AUDITED = frozenset({CallerRole.ADMIN, CallerRole.ENROL})
"""Every call of a method that needs one of these leaves a line in the log."""


def with_included(roles: Iterable[CallerRole]) -> frozenset[CallerRole]:
    """The roles, and those that they have in them."""
    given = frozenset(roles)
    return given | {CallerRole.READ} if CallerRole.ADMIN in given else given
