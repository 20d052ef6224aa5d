"""Labels as texts say what the labels say, and a text has a label if and only if the labels have it."""

from hypothesis import given
from hypothesis import strategies as st

from mien_server.gallery.labels import fitting, from_text, to_text

WORDS = st.text('ab"\\,:{}é ', max_size=3)
LABELS = st.dictionaries(WORDS.filter(bool), WORDS, max_size=4)


@given(LABELS)
def test_text_is_read_back(labels: dict[str, str]) -> None:
    assert from_text(to_text(labels)) == labels
    assert to_text(dict(reversed(labels.items()))) == to_text(labels)


@given(st.lists(LABELS, max_size=5), LABELS)
def test_texts_fit_as_their_labels_do(some: list[dict[str, str]], wanted: dict[str, str]) -> None:
    texts: list[str | None] = [*map(to_text, some), None]
    expected = [wanted.items() <= labels.items() for labels in some]
    assert fitting(texts, wanted).tolist() == [*expected, False]
