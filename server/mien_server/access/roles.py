"""The one table of what a caller needs for each method.

A method that is served and not in the table is refused to everybody as soon as callers have to prove who they
are: whoever adds a method adds its line here, and docs/security.md repeats the table.
"""

from collections.abc import Iterable
from enum import StrEnum


class Role(StrEnum):
    """What a caller may do. A caller has one or several; `ADMIN` has `READ` in it, no other has another."""

    INFER = "infer"
    ENROL = "enrol"
    READ = "read"
    ADMIN = "admin"


ROLES = ", ".join(Role)

OPEN = "open"
"""What a method needs that answers everybody: probes carry no credentials."""

_FACES = "/mien.v1.FaceService/"
_GALLERY = "/mien.v1.GalleryService/"
_TRITON = "/inference.GRPCInferenceService/"
_HEALTH = "/grpc.health.v1.Health/"
_REFLECTION = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"

METHODS: dict[str, Role | str] = {
    **{_FACES + method: Role.INFER for method in ("Detect", "Embed", "Verify")},
    _GALLERY + "Identify": Role.INFER,
    **{
        _GALLERY + method: Role.READ
        for method in (
            *("ListCollections", "GetCollection"),
            *("ListPersons", "GetPerson", "ListFaces", "GetFace", "Group"),
        )
    },
    **{
        _GALLERY + method: Role.ENROL
        for method in (
            *("CreateCollection", "DeleteCollection"),
            *("Enrol", "MoveFaces", "DeleteFaces", "DeletePerson", "Reembed"),
        )
    },
    **{_TRITON + method: OPEN for method in ("ServerLive", "ServerReady")},
    **{_TRITON + method: Role.INFER for method in ("ModelInfer", "ModelStreamInfer")},
    **{
        _TRITON + method: Role.READ
        for method in (
            *("ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig"),
            *("ModelStatistics", "RepositoryIndex"),
        )
    },
    **{
        _TRITON + method: Role.ADMIN
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
    **{_REFLECTION.format(version): Role.READ for version in ("v1", "v1alpha")},
}
"""Path of a method, /package.Service/Method: the role that it needs, or `OPEN`."""

AUDITED = frozenset({Role.ADMIN, Role.ENROL})
"""Every call of a method that needs one of these leaves a line in the log."""


def with_included(roles: Iterable[Role]) -> frozenset[Role]:
    """The roles, and those that they have in them."""
    given = frozenset(roles)
    return given | {Role.READ} if Role.ADMIN in given else given
