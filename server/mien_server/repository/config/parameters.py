"""The `parameters` map of a config.pbtxt: mien's own settings of a model, as typed values."""

import difflib
import math
from collections.abc import Collection
from typing import TypeVar

from mien_server.repository.config.pbtxt import ConfigError, ConfigText

_T = TypeVar("_T")


class Parameters:
    """Values by name and type. Every reader raises ConfigError for one that does not fit."""

    def __init__(self, text: ConfigText, known: Collection[str]) -> None:
        """Takes the parameters of a config.

        Raises:
            ConfigError: one of them is not among the known names.
        """
        self._text = text
        self._values = {key: p.string_value for key, p in text.message.parameters.items()}
        for key in self._values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
                raise self.error(key, f"is no parameter of mien's; {hint}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def error(self, key: str, problem: str) -> ConfigError:
        """The error that says so about this parameter."""
        return self._text.error(("parameters", key), problem)

    def text(self, key: str, default: str | None = None) -> str:
        """A string; without default it must be given."""
        value = self._values.get(key, default)
        if value is None:
            raise self.error(key, f'is missing; add parameters {{ key: "{key}" … }}')
        return str(value)

    def choice(self, key: str, choices: Collection[_T], default: _T | None = None) -> _T:
        """One of the choices, which are strings."""
        value = self.text(key, None if default is None else str(default))
        for choice in choices:
            if choice == value:
                return choice
        raise self.error(key, f"is {value!r}; must be one of {', '.join(map(str, choices))}")

    def texts(self, key: str) -> tuple[str, ...]:
        """Strings, separated by commas; none if it is not given."""
        return tuple(part.strip() for part in self.text(key, "").split(",")) if key in self else ()

    def flag(self, key: str, *, default: bool) -> bool:
        """`true` or `false`."""
        return self.choice(key, ("true", "false"), str(default).lower()) == "true"

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number in [low, high], also written as a fraction: `1/127.5`."""
        if key not in self and default is not None:
            return default
        return self._number(key, self.text(key), low, high)

    def integer(self, key: str, low: int, default: int) -> int:
        """A whole number from `low` on."""
        return default if key not in self else self._integer(key, self.text(key), low)

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...]:
        """Numbers in [low, high], separated by commas."""
        parts = self.text(key).split(",")
        return tuple(self._number(key, part, low, high) for part in parts)

    def integers(self, key: str, low: int) -> tuple[int, ...]:
        """Whole numbers from `low` on, separated by commas."""
        return tuple(self._integer(key, part, low) for part in self.text(key).split(","))

    def table(
        self, key: str, *, keys: tuple[float, float], values: tuple[float, float]
    ) -> tuple[tuple[float, float], ...]:
        """Pairs of numbers, `0.1: 0.25, 0.01: 0.4`, each within its bounds; none if it is not given."""
        if key not in self:
            return ()
        rows = [part.split(":") for part in self.text(key).split(",")]
        if any(len(row) != 2 for row in rows):
            raise self.error(key, "must be pairs of numbers, for example 0.1: 0.25, 0.01: 0.4")
        return tuple(
            (self._number(key, left, *keys), self._number(key, right, *values))
            for left, right in rows
        )

    def _number(self, key: str, text: str, low: float, high: float) -> float:
        try:
            numerator, slash, denominator = text.partition("/")
            value = float(numerator) / (float(denominator) if slash else 1)
        except (ValueError, ZeroDivisionError):
            raise self.error(key, f"{text.strip()!r} is no number") from None
        if not (math.isfinite(value) and low <= value <= high):
            raise self.error(key, f"is {text.strip()}; must be in [{low:g}, {high:g}]")
        return value

    def _integer(self, key: str, text: str, low: int) -> int:
        try:
            value = int(text)
        except ValueError:
            raise self.error(key, f"{text.strip()!r} is no whole number") from None
        if value < low:
            raise self.error(key, f"is {value}; must be at least {low}")
        return value
