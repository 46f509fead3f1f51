import base64
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping

import pytest

from train.report.charts import Line, line_chart


def svg(lines: Mapping[str, Line], *, logarithmic: bool = False) -> ElementTree.Element:
    """The picture inside a chart, which must be whole XML, drawn without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = line_chart("t & <u>", lines, logarithmic=logarithmic)
    assert "<figcaption>t &amp; &lt;u&gt;</figcaption>" in figure
    (content,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', figure)
    return ElementTree.fromstring(base64.b64decode(content))


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def points(root: ElementTree.Element) -> list[int]:
    """Points of each line of data, the only paths that are cut to the axes."""
    paths = root.iter("{http://www.w3.org/2000/svg}path")
    data = [path for path in paths if "clip-path" in path.attrib and "#ddd" not in path.get("style", "")]
    return [len(re.findall("[ML]", path.get("d", ""))) for path in data]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_what_cannot_be_drawn_is_left_out_and_said_where_nothing_is_left(logarithmic):
    nothing = {"none": [], "bad": [(1, float("nan")), (2, float("inf"))]}
    assert "nothing recorded yet" in texts(svg(nothing, logarithmic=logarithmic))
    some = texts(svg({**nothing, "one": [(3, 2.0)], "flat": [(1, 5.0), (2, 5.0)]}, logarithmic=logarithmic))
    assert {"one", "flat", "step"} <= set(some)
    assert not {"nothing recorded yet", "none", "bad"} & set(some)


def test_names_are_text_and_no_formulas():
    assert {"a<b>&", "$\\frac$"} <= set(texts(svg({"a<b>&": [(1, 1.0), (2, 2.0)], "$\\frac$": [(1, 1.0), (2, 3.0)]})))


def test_a_long_line_is_averaged_to_a_few_hundred_points():
    jagged = [(step, float(step % 7)) for step in range(5000)]
    (count,) = points(svg({"many": jagged}))
    assert 100 < count <= 600


def test_the_same_lines_give_the_same_file():
    assert line_chart("t", {"a": [(1, 1.0), (2, 4.0)]}) == line_chart("t", {"a": [(1, 1.0), (2, 4.0)]})
