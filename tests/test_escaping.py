"""What came from models and files is shown and does nothing where it is shown."""

import html
import re

import pytest
from rich.markdown import Markdown

from llava_probe.escaping import in_markdown, quoted, visible

CLEAR, BACKWARDS, BELL = "\x1b[2J", "\u202e", "\a"


def test_a_terminal_gets_no_character_that_it_obeys():
    assert visible(f"a{CLEAR}b{BACKWARDS}c{BELL}\r\n") == r"a\x1b[2Jb\u202ec\x07\r\n"
    assert visible("two\nlines\t", lines=True) == "two\nlines\\t"
    assert visible("stop · žluť 停") == "stop · žluť 停"
    assert quoted(" st\n") == r'" st\n"'


@pytest.mark.parametrize("text", ["a | b", "<b>x</b>", "[link](http://x)", "# head", "`code`", "two\nlines", "*x* _y_"])
def test_markdown_shows_the_text_and_no_markup(text):
    tokens = Markdown(f"| {in_markdown(text)} |\n|---|\n| x |").parsed
    kinds = {child.type for token in tokens for child in (token.children or ())}
    assert kinds <= {"text", "text_special"}, "no emphasis, link, code or HTML"
    head = next(token for token in tokens if token.type == "inline")
    shown = "".join(child.content for child in head.children)
    assert shown == text.replace("\n", "⏎")
    assert len(re.findall("th_open", " ".join(token.type for token in tokens))) == 1
    assert html.unescape(shown) == shown
