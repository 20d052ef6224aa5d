"""Answers that leave in the order in which their requests came: `preserve_ordering`."""

from collections import deque

from mien_server.scheduling.interface import Completion
from mien_server.scheduling.request import Request

Answer = tuple[Request, Completion]


class AnswerOrder:
    """The requests of one slot whose answers have not left yet, the oldest first.

    An answer waits here until all earlier requests are settled. One thread at a time hands answers out,
    because two threads could tell their callers in either order; answers that come up in the meantime
    wait until that thread asks for them with `delivered`. Not safe for threads.
    """

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self._answers: dict[Request, Completion] = {}
        self._delivering = False

    def __len__(self) -> int:
        return len(self._requests)

    def append(self, request: Request) -> None:
        """Adds the newest request."""
        self._requests.append(request)

    def settled(self, request: Request, answer: Completion | None) -> list[Answer]:
        """Notes that a request is settled, with an answer or without; returns what may leave now."""
        if answer is not None:
            self._answers[request] = answer
        return self._next()

    def delivered(self) -> list[Answer]:
        """Notes that the answers last returned have left; returns those that came up meanwhile."""
        self._delivering = False
        return self._next()

    def _next(self) -> list[Answer]:
        answers: list[Answer] = []
        if self._delivering:
            return answers
        while self._requests and self._requests[0].settled:
            first = self._requests.popleft()
            answer = self._answers.pop(first, None)
            if answer is not None:
                answers.append((first, answer))
        self._delivering = bool(answers)
        return answers
