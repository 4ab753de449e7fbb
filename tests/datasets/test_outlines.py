"""Outlines drawn as masks: against a count of crossings in exact fractions, against PIL, and files that are refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from datasets.outlines import draw, outline_defects, rasterise, read_outlines


def crossed(outline: np.ndarray, height: int, width: int) -> np.ndarray:
    """By the rule itself: how many edges lie to the left of each centre, in exact fractions."""
    points = [(Fraction(x), Fraction(y)) for x, y in outline.tolist()]
    edges = list(zip(points, points[1:] + points[:1], strict=True))
    mask = np.zeros((height, width), dtype=bool)
    for row, column in np.ndindex(height, width):
        x, y = column + Fraction(1, 2), row + Fraction(1, 2)
        for (xa, ya), (xb, yb) in edges:
            if (ya <= y) != (yb <= y) and xa + (y - ya) * (xb - xa) / (yb - ya) <= x:
                mask[row, column] ^= True
    return mask


def drawn(outline: np.ndarray, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    assert rasterise(outline, mask) == mask.any()
    return mask


def star(seed: int, points: int = 12, centre: tuple[float, float] = (12.0, 10.0), radius: float = 9.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    angles, radii = np.sort(rng.uniform(0, 2 * np.pi, points)), rng.uniform(0.2, 1, points) * radius
    return np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], axis=1)


@pytest.mark.parametrize("seed", range(20))
def test_shapes_of_all_kinds_pixel_by_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for outline in (
        star(seed),
        star(seed, radius=20.0),  # over every border
        rng.uniform(-3, 25, (9, 2)),  # crosses itself
        rng.integers(0, 20, (7, 2)).astype(float),  # corners where pixels meet
        rng.integers(0, 20, (6, 2)) + 0.5,  # corners at the centres of pixels
    ):
        np.testing.assert_array_equal(drawn(outline, 20, 24), crossed(outline, 20, 24))


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, 0.75])
def test_shapes_with_a_common_edge_share_no_pixel_and_leave_none_out(shift: float) -> None:
    """A fan of triangles about a point, and a grid of squares, each pixel in one of them."""
    corners = np.array([[0, 0], [7, 0], [16, 0], [16, 16], [5, 16], [0, 9]]) + shift
    middle = np.array([[6.3, 7.1]]) + shift
    fan = [np.concatenate([middle, corners[[n, (n + 1) % 6]]]) for n in range(6)]
    grid = [np.array([[x, y], [x + 4, y], [x + 4, y + 4], [x, y + 4]]) + shift for x in (0, 4, 8) for y in (0, 4, 8)]
    for parts, whole in ((fan, corners), (grid, np.array([[0, 0], [12, 0], [12, 12], [0, 12]]) + shift)):
        total = sum(drawn(part, 20, 20).astype(int) for part in parts)
        np.testing.assert_array_equal(total, drawn(whole, 20, 20).astype(int))


def test_a_square_has_its_pixels() -> None:
    mask = drawn(np.array([[2.0, 1.0], [5.0, 1.0], [5.0, 3.0], [2.0, 3.0]]), 6, 8)
    assert {tuple(found) for found in np.argwhere(mask).tolist()} == {(r, c) for r in (1, 2) for c in (2, 3, 4)}


def test_the_way_round_and_where_it_begins_do_not_matter() -> None:
    outline = star(3)
    for same in (outline[::-1], np.roll(outline, 5, axis=0), np.concatenate([outline, outline[:1]])):
        np.testing.assert_array_equal(drawn(same, 20, 24), drawn(outline, 20, 24))


@pytest.mark.parametrize("seed", range(5))
def test_PIL_draws_the_same_but_for_the_edge(seed: int) -> None:
    outline = star(seed, 8, (60.0, 50.0), 45.0)
    canvas = Image.new("1", (120, 100))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in (outline - 0.5).tolist()], fill=1)
    differ = drawn(outline, 100, 120) != np.asarray(canvas)
    ends = np.stack([outline, np.roll(outline, -1, axis=0)])
    steps = np.linspace(0, 1, 500)[:, None, None]
    on_edge = (ends[0] * (1 - steps) + ends[1] * steps).reshape(-1, 2)
    for row, column in np.argwhere(differ):
        distance = np.hypot(on_edge[:, 0] - column - 0.5, on_edge[:, 1] - row - 0.5).min()
        assert distance < 1.5


def test_drawing_joins_outlines_and_counts() -> None:
    outlines = [
        np.array([[1.0, 1.0], [6.0, 1.0], [6.0, 6.0], [1.0, 6.0]]),
        np.array([[4.0, 4.0], [9.0, 4.0], [9.0, 9.0], [4.0, 9.0]]),  # overlaps the first: both stay
        np.array([[-1.0, 8.0], [2.0, 8.0], [2.0, 11.0]]),
        np.array([[7.1, 1.1], [7.3, 1.1], [7.2, 1.3]]),
        np.array([[1.0, 1.0], [2.0, 2.0]]),
    ]
    mask, counts = draw(outlines, (10, 10))
    assert counts == {"objects": 3, "clipped": 1, "short": 1, "small": 1}
    expected = crossed(outlines[0], 10, 10) | crossed(outlines[1], 10, 10) | crossed(outlines[2], 10, 10)
    np.testing.assert_array_equal(mask, expected)


HEAD = '<?xml version="1.0"?><Annotations MicronsPerPixel="0.252"><Annotation Id="1"><Regions><Region Id="7"><Vertices>'
TAIL = "</Vertices></Region></Regions></Annotation></Annotations>"


def xml(path: Path, vertices: str = '<Vertex X="1.5" Y="2" Z="0"/>', head: str = HEAD, tail: str = TAIL) -> Path:
    path.write_text(head + vertices + tail)
    return path


def test_regions_are_read_in_order_from_every_layer(tmp_path: Path) -> None:
    more = '</Vertices></Region><Region Id="8"><Vertices/></Region></Regions></Annotation><Annotation Id="2"><Regions>'
    more += '<Region Id="1"><Vertices><Vertex X="-3e0" Y="4.25" Z="0"/><Vertex X="5" Y="6" Z="0"/>'
    found = read_outlines(xml(tmp_path / "a.xml", '<Vertex X="1.5" Y="2" Z="0"/>' + more))
    assert [outline.tolist() for outline in found] == [[[1.5, 2.0]], [], [[-3.0, 4.25], [5.0, 6.0]]]


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><Annotations>&c;</Annotations>'
BAD_XML = {
    "entities": (BOMB.encode(), ("declares a document type",)),
    "entities in UTF-16": (BOMB.encode("utf-16"), ("declares a document type",)),
    "document type": (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><Annotations/>', ("declares a document type",)),
    "cut short": ((HEAD + '<Vertex X="1" Y').encode(), ("no readable XML", "line 1")),
    "no XML": (b"hello", ("no readable XML",)),
    "empty": (b"", ("no readable XML",)),
    "unknown encoding": (b'<?xml version="1.0" encoding="nonsense"?><Annotations/>', ("no readable XML",)),
    "another schema": (b"<annotation><object/></annotation>", ("<annotation>", "<Annotations>")),
    "no number": ((HEAD + '<Vertex X="1" Y="2"/><Vertex X="a" Y="2"/>' + TAIL).encode(), ("region 1", 'X="a"')),
    "not finite": ((HEAD + '<Vertex X="nan" Y="2"/>' + TAIL).encode(), ("region 1", 'X="nan"')),
    "half a vertex": ((HEAD + '<Vertex X="1"/>' + TAIL).encode(), ("region 1", "expected X and Y")),
}


@pytest.mark.parametrize("kind", BAD_XML)
def test_bad_annotation_files_are_refused(tmp_path: Path, kind: str) -> None:
    content, parts = BAD_XML[kind]
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(ValueError) as refused:
        read_outlines(tmp_path / "a.xml")
    for part in ("a.xml: ", *parts):
        assert part in str(refused.value)


def test_what_is_deep_or_has_regions_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    for content, message in (("<a>" * 10**4, "elements 65 deep"), ("<Region/>" * 70000, "more than 65536 regions")):
        path.write_text(f"<Annotations>{content}</Annotations>")
        with pytest.raises(ValueError, match=rf"a\.xml: has {message}"):
            read_outlines(path)


def test_edges_are_worked_out_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.outlines

    for at_once in (1, 7, 50):
        monkeypatch.setattr(datasets.outlines, "_AT_ONCE", at_once)
        np.testing.assert_array_equal(drawn(star(3), 20, 24), crossed(star(3), 20, 24))


def test_a_giant_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.xml").open("wb") as file:
        file.truncate(2**25 + 1)
    with pytest.raises(ValueError, match="more than 32 MiB"):
        read_outlines(tmp_path / "a.xml")


def test_outlines_of_another_picture_are_named() -> None:
    square = np.array([[0.0, 0.0], [50.0, 0.0], [50.0, 50.0]])
    outlines = [square, square + [100.0, 0.0], square + [60.1, 0.0], square - [10.0, 20.0], square - [10.1, 0.0]]
    defects = list(outline_defects(Path("a.xml"), outlines, (200, 100)))
    assert [defect.what.split(" lies ")[0] for defect in defects] == ["region 2", "region 3", "region 5"]
    assert "x 100 to 150, y 0 to 50, outside the picture" in defects[0].what
    assert "far beyond" in defects[1].what and "100 x 200 pixels" in defects[1].what
    (none,) = outline_defects(Path("a.xml"), [], (200, 100))
    assert "no region" in none.what
