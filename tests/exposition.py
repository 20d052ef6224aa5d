"""Prometheus' text format, read back."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families


class Exposition:
    """What one scrape told.

    Attributes:
        types: of each family, by the name in its TYPE line.
    """

    def __init__(self, text: str) -> None:
        self.types = dict(
            line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE ")
        )
        self._samples = [
            # The parser gives every counter the ending that OpenMetrics wants.
            sample if sample.name in text else sample._replace(name=family.name)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def of(self, name: str, **labels: str) -> dict[tuple[str, ...], float]:
        """The samples of this name that have these labels, by the values of their other labels."""
        return {
            tuple(value for key, value in sorted(sample.labels.items()) if key not in labels): (
                sample.value
            )
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        }

    def one(self, name: str, **labels: str) -> float:
        """The sample of this name with exactly these labels."""
        found = self.of(name, **labels)
        assert found.keys() == {()}, (name, labels, found)
        return found[()]

    def families(self) -> Mapping[str, str]:
        """The types of mien's own, gRPC's and Triton's families."""
        return {name: kind for name, kind in self.types.items() if not name.startswith("process_")}
