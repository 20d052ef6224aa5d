"""What it means that pymilvus raised something: for callers, and for who runs the server."""

from collections.abc import Iterator
from dataclasses import dataclass

from mien_server.gallery.milvus_access import MilvusAccess
from mien_server.settings import name_of

_UNREACHABLE = 2
_NO_DATABASE = 800
_CERTIFICATE = "CERTIFICATE_VERIFY_FAILED"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why Milvus did not do what it was asked.

    Attributes:
        told: to callers, in one line: not where Milvus is, and not what its user is called.
        advice: to who runs the server: what to do; "": nothing but wait.
        detail: what pymilvus said of it, for who runs the server; "": nothing else.
        away: nothing else can be had of Milvus either, until it is mended.
    """

    told: str
    advice: str = ""
    detail: str = ""
    away: bool = True

    def __str__(self) -> str:
        parts = (self.told, f"({self.detail})" if self.detail else "")
        text = " ".join(filter(None, parts))
        return f"{text}: {self.advice}" if self.advice else text


def failure_of(error: Exception, access: MilvusAccess, *, tls: bool) -> Failure:
    """What an exception of pymilvus' means.

    Args:
        error: pymilvus' own, gRPC's, or what it met with a file.
        access: that the connection was made with.
        tls: whether it was to speak TLS.
    """
    status, said = _status(error)
    if status == "UNAUTHENTICATED":
        return Failure("it does not accept this server", _whom_it_accepts(access), said)
    if status == "PERMISSION_DENIED":
        return Failure(
            "it does not let this server do that",
            f"give its user a role with the privileges in docs/galleries.md; {said}",
            away=False,
        )
    if getattr(error, "code", None) == _NO_DATABASE:
        return Failure(
            "it has no such database",
            f"make it in Milvus, or name another in {name_of('gallery_url')}",
            _line(getattr(error, "message", "")),
        )
    for each in _chain(error):
        if isinstance(each, OSError):
            return Failure("it cannot be reached", detail=_line(each))
    if is_away(error):
        told = "its certificate is not trusted" if _untrusted(said) else "it cannot be reached"
        return Failure(told, _how_to_reach(said, access, tls=tls), said)
    text = getattr(error, "message", "") or status or type(error).__name__
    return Failure(_line(text)[:200], away=False)


def is_away(error: Exception) -> bool:
    """Whether an exception of pymilvus' says that nothing can be had of Milvus."""
    return (
        getattr(error, "code", None) == _UNREACHABLE
        or _status(error)[0] in ("UNAVAILABLE", "UNAUTHENTICATED")
    )  # fmt: skip


def _whom_it_accepts(access: MilvusAccess) -> str:
    name = name_of("gallery_token_file")
    if not access.token:
        return f"write user:password, or an API key, into a file and name that with {name}"
    return (
        f"the file of {name} must hold user:password of a user of Milvus', or an API key; it is read at the"
        " start, so start the server anew"
    )


def _untrusted(said: str) -> bool:
    return _CERTIFICATE in said or "Hostname Verification" in said


def _how_to_reach(said: str, access: MilvusAccess, *, tls: bool) -> str:
    url, ca = name_of("gallery_url"), name_of("gallery_tls_ca")
    if "Hostname Verification" in said:
        return f"its certificate must be for the name or the address that {url} has"
    if _CERTIFICATE in said:
        if access.ca is None:
            return f"name the file of the authority that signed it with {ca}"
        return f"an authority in {access.ca} ({ca}) must have signed it, and it must not have ended"
    if "WRONG_VERSION_NUMBER" in said:
        return f"it speaks no TLS, so that {url} begins with milvus://"
    if "Socket closed" in said or "TSI_DATA_CORRUPTED" in said:
        if not tls:
            return f"if it speaks TLS alone, {url} begins with milvus+tls://"
        shown = name_of("gallery_tls_cert")
        return f"if it asks for a client's certificate, {shown} names one that an authority of its has signed"
    return ""


def _status(error: BaseException) -> tuple[str, str]:
    """The code and details of gRPC, where an exception is gRPC's or comes from one; ("", ""): it does not."""
    for each in _chain(error):
        code, details = getattr(each, "code", None), getattr(each, "details", None)
        if callable(code) and callable(details):
            return code().name, _line(details() or "")
    return "", ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it comes from. pymilvus raises some from themselves."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        yield each
        seen.add(id(each))
        each = each.__context__ if each.__cause__ in (None, each) else each.__cause__


def _line(text: object) -> str:
    return " ".join(str(text).split())
