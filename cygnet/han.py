"""Han characters and the forms of Tang verse: said once, for every room that reads Chinese."""

from __future__ import annotations

HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""Inside of a regular expression's brackets: the ideographs, their compatibility forms, and the
signs 々 and 〇 that stand for one (Unicode's Script=Han, radicals and numerals left out)."""

POEM_FORMS = {"五言绝句": (4, 5), "七言绝句": (4, 7), "五言律诗": (8, 5), "七言律诗": (8, 7)}
"""Name of the form: lines, characters in a line."""
