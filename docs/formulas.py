"""Formulas become MathML, and their font a style sheet: no script and no network."""

import base64
import html
import io
import re
from importlib.metadata import distribution
from pathlib import Path

from fontTools import subset
from math_core import LatexToMathML


FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL
)
CONVERTER = LatexToMathML()
REPAIRS = [
    # A variation selector would ask for a second script letter.
    ("\ufe00", ""),
    # The font's prime is raised already.
    (
        "<msup>((?:(?!<msup>).)*?)<mo>′</mo></msup>",
        r'<mrow>\1<mo lspace="0" rspace="0">′</mo></mrow>',
    ),
]
FONT = distribution("ziamath").locate_file("ziamath/fonts/STIXTwoMath-Regular.ttf")
# Browsers write Latin and Greek letters of formulas with these italic ones.
characters = {0x210E, *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)}


def on_page_content(content, **_):
    def mathml(match):
        found = CONVERTER.convert_with_local_state(
            html.unescape(match[3]), displaystyle=match[2] == "["
        )
        for pattern, repaired in REPAIRS:
            found = re.sub(pattern, repaired, found)
        characters.update(map(ord, html.unescape(re.sub("<.*?>", "", found))))
        return found

    return FORMULA.sub(mathml, content)


def font(unicodes):
    """The CSS source of the formulas' font with these characters only."""
    options = subset.Options(flavor="woff")
    options.layout_features.append("ssty")
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=unicodes)
    loaded = subset.load_font(str(FONT), options)
    subsetter.subset(loaded)
    written = io.BytesIO()
    subset.save_font(loaded, written, options)
    data = base64.b64encode(written.getvalue()).decode()
    return f"src: url(data:font/woff;base64,{data});"


def on_post_build(config):
    script = f"{font([ord('ℒ')])} unicode-range: U+2112;"
    css = f'@font-face {{ font-family: "Formulas"; {font(characters)} }}\n'
    css += f'@font-face {{ font-family: "Script L"; {script} }}\n'
    Path(config.site_dir, "formulas.css").write_text(css)
