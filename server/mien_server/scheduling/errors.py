"""Why a queue did not answer. `rpc/status.py` maps these to status codes."""


class SchedulingError(Exception):
    """A request that no result came from."""


class QueueFull(SchedulingError):
    """Refused at the door: nothing was queued, try again later.

    Attributes:
        retry_after: seconds after which a retry has a chance, above 0.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Expired(SchedulingError):
    """The deadline or the queue timeout passed before the request could be computed."""


class Unavailable(SchedulingError):
    """The slot does not serve (unhealthy, closed); the message says why."""


class Draining(Unavailable):
    """The server or the slot is shutting down and takes no new requests."""


class RowFailed(SchedulingError):
    """The backend raised on this very request, also when it ran alone.

    Attributes:
        incident: a short id that the log line with the traceback carries too.
    """

    def __init__(self, message: str, *, incident: str) -> None:
        super().__init__(message)
        self.incident = incident
