"""The site builds without a warning, asks no other host for anything, and no link in it is dead."""

import re
import runpy
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urlparse

import pytest
import typer

import llava_probe as lp
from llava_probe.cli import app
from tests.docs.blocks import DOCS, ROOT

pytest.importorskip("sphinx", reason="the site needs Sphinx: pip install '.[docs]'")
pytest.importorskip("myst_nb", reason="the site needs myst-nb: pip install '.[docs]'")


class Links(HTMLParser):
    """What a page loads, where it leads, and what in it can be led to."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.leads, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self.anchors |= {told[name] for name in ("id", "name") if told.get(name)}
        if tag == "a" and "href" in told:
            self.leads.append(told["href"])
        elif tag == "link" and not {"next", "prev", "search", "index"} & set(told.get("rel", "").split()):
            self.loads.append(told["href"])
        elif told.get("src"):
            self.loads.append(told["src"])


@pytest.fixture(scope="session")
def site(tmp_path_factory, worker_id):
    """The built site: once for all workers, whoever comes first."""
    filelock = pytest.importorskip("filelock")
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if worker_id != "master" else shared
    out = shared / "site"
    with filelock.FileLock(shared / "site.lock"):
        if not (shared / "site.log").exists():
            command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-d", shared / "doctrees"]
            built = subprocess.run([*command, "-b", "html", DOCS, out], cwd=ROOT, capture_output=True, text=True)
            (shared / "site.log").write_text(f"{built.returncode}\n{built.stderr}", encoding="utf-8")
    return out


def test_live_pages_are_made_where_this_version_can_make_pages(tmp_path, monkeypatch):
    making = runpy.run_path(str(DOCS / "making.py"))
    asked = {}
    monkeypatch.delattr(lp, "page", raising=False)
    if "page" not in lp.__all__:
        assert "no live pages" in making["live_page"]("01_quick_start", tmp_path)
    monkeypatch.setattr(lp, "page", lambda results, path: asked.update({path: results[0]}), raising=False)
    said = making["live_page"]("01_quick_start", tmp_path)
    ((path, trace),) = asked.items()
    assert trace.answer == "STOP"
    assert f'href="../{path.relative_to(tmp_path).as_posix()}"' in said


@pytest.fixture(scope="session")
def links(site):
    return {page: Links(page.read_text(encoding="utf-8")) for page in site.rglob("*.html") if "live" not in page.parts}


def test_the_site_builds_without_a_warning(site):
    status, _, said = (site.parent / "site.log").read_text(encoding="utf-8").partition("\n")
    assert (status, said) == ("0", "")


def test_no_page_loads_anything_from_elsewhere(site, links):
    assert len(links) > 40
    outside = {load for each in links.values() for load in each.loads if urlparse(load).scheme in ("http", "https")}
    outside |= {load for each in links.values() for load in each.loads if load.startswith("//")}
    for sheet in site.rglob("*.css"):
        outside |= set(re.findall(r"""(?:url\(|@import )["']?(https?:[^"')]+|//[^"')]+)""", sheet.read_text("utf-8")))
    assert not outside


def dead_links(site, links):
    """Of each page, the links inside the site that lead to no file, or to no place in it."""
    dead = defaultdict(list)
    for page, each in links.items():
        for lead in each.leads:
            if urlparse(lead).scheme or lead in ("", "#"):
                continue
            path, anchor = urldefrag(lead)
            target = (page.parent / unquote(path)).resolve() if path else page
            inside = links.get(target)
            if not target.exists() or (anchor and inside and unquote(anchor) not in inside.anchors):
                dead[str(page.relative_to(site))].append(lead)
    return dict(dead)


def test_no_link_inside_is_dead(site, links):
    assert not dead_links(site, links)


def test_dead_links_are_found(tmp_path):
    page = (tmp_path / "a.html").resolve()
    text = '<h1 id="here"></h1><a href="a.html#here"></a><a href="#there"></a><a href="b.html"></a><a href="https://c"></a>'
    page.write_text(text + '<script src="https://d/e.js"></script>')
    found = {page: Links(page.read_text())}
    assert dead_links(page.parent, found) == {"a.html": ["#there", "b.html"]}
    assert found[page].loads == ["https://d/e.js"]


def test_every_verb_of_the_command_line_has_its_options_on_a_page(site):
    page = (site / "api" / "command_line.html").read_text(encoding="utf-8")
    for verb, command in typer.main.get_command(app).commands.items():
        assert f"<h2>llava-probe {verb}<" in page
        shown = [
            option if option.startswith("-") else option.upper() for each in command.params for option in each.opts
        ]
        assert not [option for option in shown if option not in page]


_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
_NAMED = re.compile(r"`((?:benchmarks|docs|figures|llava_probe|notebooks|tests|tools)/[\w./-]*)`")
_FILES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *DOCS.rglob("*.rst"), *(ROOT / "figures").glob("*.md")]
PROSE = sorted(path.relative_to(ROOT).as_posix() for path in _FILES)


@pytest.mark.parametrize("name", PROSE)
def test_files_that_pages_link_or_name_are_there(name):
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    linked = [path.parent / link for link in _LINK.findall(text) if not link.startswith(("/", "../made/"))]
    named = [ROOT / name for name in _NAMED.findall(text) if "yours" not in name]
    assert not [str(each) for each in (*linked, *named) if not each.exists()]
