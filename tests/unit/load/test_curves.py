"""The picture of latency over throughput."""

import xml.etree.ElementTree as ET

from mien_server.load.curves import PALE, Point, draw_curves

SVG = "{http://www.w3.org/2000/svg}"
CURVES = {
    "a & <b>": [Point(10.0, 4.0, "1"), Point(20.0, 16.0, "8")],
    "other": [Point(5.0, 8.0, "1")],
}


def draw(**options: object) -> ET.Element:
    texts = {"title": "A", "across": "rows", "upwards": "p99 ms"}
    return ET.fromstring(draw_curves(CURVES, **texts, **options))  # type: ignore[arg-type]  # noqa: S314


def test_every_point_is_there_and_names_may_hold_any_character() -> None:
    picture = draw(others=[Point(1.0, 2.0, "")])
    circles = picture.findall(f"{SVG}circle")
    assert [circle.get("fill") == PALE for circle in circles] == [True, False, False, False]
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"a & <b>", "other", "rows a second", "p99 ms"} <= set(texts)


def test_a_higher_rate_is_further_right_and_a_longer_time_further_up() -> None:
    first, second, _ = draw().findall(f"{SVG}circle")
    assert float(first.get("cx", 0)) < float(second.get("cx", 0))
    assert float(first.get("cy", 0)) > float(second.get("cy", 0))


def test_a_limit_is_a_dashed_line_within_the_picture() -> None:
    (line,) = [
        each for each in draw(limit=512.0).iter(f"{SVG}line") if each.get("stroke-dasharray")
    ]
    assert 0 < float(line.get("y1", 0)) < 480
    assert not any(each.get("stroke-dasharray") for each in draw().iter(f"{SVG}line"))


def test_nothing_measured_is_an_empty_picture() -> None:
    assert draw_curves({}, title="A", across="rows", upwards="ms").startswith("<svg")
