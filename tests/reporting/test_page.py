"""The report as files, and as a reader sees it in a browser.

Tests whose names say "in a browser" drive a real one, and are skipped where none is
installed.
"""

import base64
import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from browser import BROWSER, opened
from made_study import METHODS, gallery, study_results, write_study
from tiny_run import ROOT, run_main

from ummcsgm.reporting import page
from ummcsgm.reporting.study_results import read_studies, read_study
from ummcsgm.types import InputError

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study with its report beside its results."""
    folder = write_study(tmp_path_factory.mktemp("page") / "first")
    page.write_report([folder], folder / "study")
    return folder


@pytest.fixture(scope="module")
def both(study):
    """Two studies in one report; the second has another seed and rate."""
    config = study_results()["facts"]["config"]
    config = config | {"seed": 8, "train": config["train"] | {"rate": 2e-3}}
    other = write_study(study.parent / "second", seed=8, config=config)
    page.write_report([study, other], study.parent / "both")
    return study.parent / "both"


def text_of(folder, end="html"):
    return (folder / f"report.{end}").read_text()


class Reader(html.parser.HTMLParser):
    """Tags that are never closed, or twice; and everything that is fetched."""

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.ids, self.svg_ids, self.images = [], [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.fetched += [values[key] for key in ("src", "href") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        self.images += [values] if tag in ("img", "svg") else []
        if tag not in ("meta", "link", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.svg_ids += [dict(attrs)["id"]] if "id" in dict(attrs) else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(study, both):
    for folder in (study / "study", both):
        text = text_of(folder)
        reader = Reader(text)
        outside = [f for f in reader.fetched if not f.startswith(("data:", "#"))]
        assert outside == [] and "://" not in re.sub(r"base64,\S+|>[\w+/=]{99,}<", "", text)
        links = {link[1:] for link in reader.fetched if link.startswith("#")}
        assert links == set(reader.ids) and len(reader.ids) == len(links) == 15
        assert len(set(reader.svg_ids)) == len(reader.svg_ids)  # ticks of the SVGs
        assert all(image.get("alt") or image.get("aria-label") for image in reader.images)
        assert re.search(r"(nan|None)\b", re.sub(r"<pre.*?</pre>", "", text)) is None


def test_a_title_is_text_and_never_a_tag(study):
    text = text_of(study / "study")
    assert "MM-GAN &lt;b&gt;&amp; friends" in text and "MM-GAN <b>" not in text
    assert r"MM-GAN \<b\>& friends" in text_of(study / "study", "md")


def test_every_section_is_in_both_files(study):
    titles = [section.title for section in page.make_report(read_studies([study])).sections]
    page_titles = re.findall(r"<h2>(.*?)</h2>", text_of(study / "study"))
    assert page_titles == titles
    assert re.findall(r"^## (.*)", text_of(study / "study", "md"), re.M) == titles
    for words in ("5" * 64, "d" * 64, "0123456789abcdef", "train.rate = 0.001", "0.10.2"):
        assert words in text_of(study / "study") and words in text_of(study / "study", "md")
    for words in ("31.00 ± 0.40", "Adapted: one generator for every question."):
        assert words in text_of(study / "study") and words in text_of(study / "study", "md")


def test_pictures_are_in_the_page_and_linked_from_the_markdown(study):
    text, links = (text_of(study / "study", end) for end in ("html", "md"))
    for path in ("evaluation/ranks.png", "dial/dial.png"):
        content = (study / path).read_bytes()
        assert base64.b64encode(content).decode() in text
        assert f"](<../{path}>)" in links
    assert "](<../evaluation/figure.png>)" in links
    for path in re.findall(r"\]\(<(.*?)>\)", links):
        assert (study / "study" / path).is_file()


def test_markdown_tables_have_straight_columns(study):
    tables = re.findall(r"(?:^\|.*\n)+", text_of(study / "study", "md"), re.M)
    assert len(tables) > 10
    for table in tables:
        lines = table.splitlines()
        assert len({len(line) for line in lines}) == 1
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_what_a_study_lacks_is_left_out(tmp_path):
    (tmp_path / "study").mkdir()
    rows = [row for row in study_results()["rows"] if row["method"] == "ridge"]
    results = {"methods": [], "rows": [r for r in rows if "+" not in r["missing"]]}
    (tmp_path / "study" / "results.json").write_text(json.dumps(results))
    page.write_report([tmp_path], tmp_path)
    reader = Reader(text_of(tmp_path))
    assert reader.ids == ["table-1", "how-it-was-made", "how-to-cite"]
    assert "27.00 ± 0.40" in text_of(tmp_path)
    assert "<b>" not in text_of(tmp_path)  # nothing is the best of one


def test_several_runs_stand_in_one_report(both):
    text = text_of(both)
    assert page.DIFFERENT_DATA not in text
    assert text.count('class="gallery"') == 2
    assert len(re.findall(r"stroke: var\(--kind\d\)", text)) == 6 and text.count("<svg") == 3
    (table,) = re.findall(r"<h3>What differs.*?</table>", text, re.S)
    cells = re.findall(r"<t[hd] [^>]*>([^<]*)<", table)
    assert cells[:9] == ["", "first", "second", "seed", "7", "8", "train.rate"] + ["0.001", "0.002"]
    assert "minus each method" in text


def test_runs_of_other_data_are_not_compared(study, tmp_path):
    other = write_study(tmp_path / "other", split_sha256="6" * 64)
    page.write_report([study, other], tmp_path)
    for text in (text_of(tmp_path), text_of(tmp_path, "md")):
        assert page.DIFFERENT_DATA in text and "minus each method" not in text


def test_differences_are_of_every_key_that_any_run_has(study, tmp_path):
    config = {"seed": 7, "data": {"folder": "elsewhere"}, "new": None}
    studies = [read_study(study), read_study(write_study(tmp_path, config=config))]
    found = page.config_differences(studies)
    assert found["data.folder"] == ["subjects", "elsewhere"]
    assert found["train.steps"] == [2000, None] and "seed" not in found
    assert page.flatten({"a": {"b": {}, "c": 1}}) == {"a.b": {}, "a.c": 1}


def test_the_citation_is_that_of_the_repository():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper, words = cff["preferred-citation"], " ".join(page.BIBTEX.split())
    authors = " and ".join(author["family-names"] for author in paper["authors"])
    for fact in (paper["title"], paper["journal"], str(paper["year"]), authors):
        assert f"{{{fact}}}" in words
    assert f"{{{cff['title']}}}" in words and f"{{{cff['license']}}}" in words
    assert f"{{{cff['version']}}}" in words
    assert f"{{{{{cff['authors'][0]['name']}}}}}" in words
    assert cff["message"] == page.CITE


def test_an_installed_package_has_the_pages_style_and_script(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for end in ("css", "js", "html.j2"):
        path = f"ummcsgm/reporting/templates/report.{end}"
        assert (tmp_path / path).read_text() == (ROOT / path).read_text()


def test_compare_is_a_command(study, tmp_path, capsys):
    other = write_study(tmp_path / "other")
    output = tmp_path / "new" / "compared"
    order = ("--mode", "compare", study, "--output", output, other)
    assert run_main(*order) == 0
    assert str(output / "report.html") in capsys.readouterr().out
    assert "<b>31.00" in text_of(output) and "# Completion" in text_of(output, "md")


WRONG = {
    "no runs": (["--output", "{0}/x"], "wants workdirs"),
    "no output": (["{0}"], "--output is missing"),
    "no study": (["{0}", "--output", "{0}/x"], "{0} holds no study/results.json"),
    "a flag": (["--no_such", "{0}", "--output", "{0}/x"], "no_such"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_compare_lacks_is_said_in_a_sentence(tmp_path, capsys, case):
    words, said = WRONG[case]
    arguments = [word.format(tmp_path) for word in words]
    assert run_main("--mode", "compare", *arguments) == 2
    heard = capsys.readouterr().err
    assert said.format(tmp_path) in heard and heard.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_second_study_is_named_that_is_the_first(study):
    with pytest.raises(InputError, match="twice"):
        page.compare([str(study), str(study)], "x")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """A tab of a browser, for all tests of this file."""
    with opened(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def show(tab, folder, width=1280, scheme="light"):
    tab.complaints.clear()
    tab.look(width, scheme)
    tab.open(folder / "report.html")
    tab.until("[...document.querySelectorAll('.gallery')].every(g => g.dataset.drawn)")


def drawn(tab, state):
    """Waits until the first gallery shows "SUBJECT SLICE VIEW"."""
    tab.until(f"document.querySelector('.gallery').dataset.drawn === '{state}'")


def pixels(tab, row):
    """[H, W, 3] of a row of the first gallery; None where it is hidden."""
    said = tab.value(
        f"""(() => {{
          const row = document.querySelector('.gallery [data-row="{row}"]');
          const canvas = row.querySelector('canvas');
          if (!canvas.offsetHeight) return null;
          const size = [canvas.height, canvas.width];
          const image = canvas.getContext('2d').getImageData(0, 0, size[1], size[0]);
          return [size, [...image.data]];
        }})()"""
    )
    if said is None:
        return None
    (height, width), values = said
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def expected(row, subject, z):
    """[H, W] of what a row shows of a slice, as a radiologist sees it."""
    arrays = gallery(subject, list(METHODS))
    at = np.nonzero((arrays["truth"] > 0).any(axis=(0, 1)))
    box = tuple(slice(max(0, a.min() - 3), a.max() + 4) for a in at)
    tiles = arrays[row][:, z, *box][:, ::-1, ::-1]
    return np.concatenate(list(tiles), axis=1).astype(int)


def choose(tab, view):
    tab.value(f"document.querySelector('.gallery [value=\"{view}\"]').click()")


@needs_browser
def test_the_slider_moves_through_the_slices_in_a_browser(tab, study):
    show(tab, study / "study")
    drawn(tab, "0 3 images")
    assert tab.value("document.querySelector('output').textContent") == "4 of 6, z = 56"
    before = pixels(tab, "mmgan")
    tab.value("document.querySelector('[type=range]').focus()")
    tab.press("ArrowRight", 39)
    drawn(tab, "0 4 images")
    assert tab.value("document.querySelector('output').textContent") == "5 of 6, z = 58"
    assert (pixels(tab, "mmgan") != before).any()
    for row in ("truth", *METHODS):
        grey = expected(row, 0, 4)
        np.testing.assert_array_equal(pixels(tab, row), np.stack([grey] * 3, -1))
    assert pixels(tab, "sd") is None
    label = tab.value("document.querySelector('[data-row=ridge] canvas').ariaLabel")
    assert label == "ridge, linear (floor); flair, t1, t1c, t2; 5 of 6, z = 58"
    assert tab.complaints == []


@needs_browser
def test_the_other_subject_is_shown_in_a_browser(tab, study):
    show(tab, study / "study")
    tab.value(
        "(() => { const s = document.querySelector('select'); s.value = 1;"
        " s.dispatchEvent(new Event('change')); })()"
    )
    drawn(tab, "1 3 images")
    np.testing.assert_array_equal(pixels(tab, "truth")[..., 0], expected("truth", 1, 3))
    assert tab.complaints == []


@needs_browser
def test_the_errors_are_differences_from_the_truth_in_a_browser(tab, study):
    show(tab, study / "study")
    before = pixels(tab, "pix2pix")
    choose(tab, "error")
    drawn(tab, "0 3 error")
    truth = expected("truth", 0, 3)
    np.testing.assert_array_equal(pixels(tab, "truth")[..., 0], truth)
    for row in METHODS:
        error = np.abs(expected(row, 0, 3) - truth)
        colours = pixels(tab, row).astype(int)
        assert (colours[error == 0] == 0).all()
        # one colour a level, ever lighter, and one for all that is beyond the scale
        light = [colours[error == level].sum(-1) for level in np.unique(error)]
        assert all(len(set(level)) == 1 for level in light)
        assert (np.diff([level[0] for level in light]) >= 0).all()
        split = zip(np.split(error, 4, 1), np.split(truth, 4, 1), strict=True)
        means = [f"{e[t > 0].mean():.1f}" for e, t in split]
        found = f"[...document.querySelectorAll('[data-row={row}] .means span')]"
        assert tab.value(f"{found}.map(s => s.textContent)") == means
    assert (pixels(tab, "pix2pix") != before).any() and pixels(tab, "sd") is None
    assert "50 or more" in tab.value("document.querySelector('.high').textContent")
    assert tab.complaints == []


@needs_browser
def test_the_predicted_sd_stands_beside_the_networks_error_in_a_browser(tab, study):
    show(tab, study / "study")
    choose(tab, "sd")
    drawn(tab, "0 3 sd")
    rows = [row for row in ("truth", *METHODS, "sd") if pixels(tab, row) is not None]
    assert rows == ["truth", "mm-csn", "sd"]
    sd = expected("sd", 0, 3)
    colours = pixels(tab, "sd").astype(int)
    assert len({tuple(c) for c in colours[sd == 7]}) == 1
    error = np.abs(expected("mm-csn", 0, 3) - expected("truth", 0, 3))
    np.testing.assert_array_equal(  # one scale for both
        pixels(tab, "mm-csn")[error == 7][0], colours[sd == 7][0]
    )
    said = tab.value("document.querySelector('.high').textContent")
    assert said == "20 or more grey levels"
    assert tab.complaints == []


@needs_browser
@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("which", ["study", "both"])
def test_the_page_is_readable_in_a_browser(tab, request, width, which):
    folder = request.getfixturevalue(which)
    show(tab, folder / "study" if which == "study" else folder, width)
    tab.value("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert tab.value("innerWidth") == width
    assert tab.value("document.documentElement.scrollWidth") <= width
    sizes = tab.value(
        """[...document.body.querySelectorAll('*')]
          .filter(e => e.getClientRects().length && !e.closest('script,.hidden'))
          .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
          .map(e => parseFloat(getComputedStyle(e).fontSize)
            * (e.ownerSVGElement ? e.getScreenCTM().a : 1))"""
    )
    assert len(sizes) > 300 and min(sizes) >= 12
    ends = tab.value(
        """[...document.querySelectorAll('.frame')].map(f => {
          f.scrollLeft = 1e6;
          const cell = f.querySelector('tr').lastElementChild;
          return [cell.getBoundingClientRect().right, f.getBoundingClientRect().right,
            f.scrollWidth - f.clientWidth];
        })"""
    )
    assert all(cell <= frame + 1 <= width + 1 for cell, frame, _ in ends)
    assert any(over > 50 for _, _, over in ends) == (width == 375)
    assert tab.complaints == []


def contrast(first, second):
    """The ratio of two colours' luminances, as WCAG defines it."""
    levels = []
    for colour in (first, second):
        share = np.array(re.findall(r"[\d.]+", colour)[:3], float) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        levels.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return max(levels) / min(levels)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_in_light_and_dark_in_a_browser(tab, both, scheme):
    show(tab, both, scheme=scheme)
    found = tab.value(
        """[...document.body.querySelectorAll('*')]
          .filter(e => e.getClientRects().length && !e.closest('script,canvas,select'))
          .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
          .map(e => {
            let under = e;
            const clear = 'rgba(0, 0, 0, 0)';
            while (getComputedStyle(under).backgroundColor === clear)
              under = under.parentElement;
            const style = getComputedStyle(e);
            return [e.ownerSVGElement ? style.fill : style.color,
              getComputedStyle(under).backgroundColor];
          })"""
    )
    pairs = {tuple(pair) for pair in found}
    back = tab.value("getComputedStyle(document.body).backgroundColor")
    assert (contrast(back, "rgb(0,0,0)") < 2) == (scheme == "dark")
    assert min(contrast(*pair) for pair in pairs) >= 4.5


@needs_browser
def test_complaints_are_heard_in_a_browser(tab, tmp_path):
    """The listener itself: an error, an exception and a request outside."""
    text = "<!doctype html><img src='http://127.0.0.1:9/x.png'><script>{}</script>"
    path = tmp_path / "report.html"
    path.write_text(text.format("console.error('ill'); throw new Error('worse')"))
    tab.complaints.clear()
    tab.open(path)
    heard = " ".join(tab.complaints)
    assert "ill" in heard and "worse" in heard and "127.0.0.1:9" in heard
    tab.complaints.clear()
    path.write_text("<!doctype html><p>well</p>")
    tab.open(path)
    assert tab.complaints == []


@needs_browser
def test_a_title_does_not_become_a_tag_in_a_browser(tab, study):
    show(tab, study / "study")
    label = "document.querySelector('[data-row=mmgan] .label')"
    found = tab.value(f"{label}.firstChild.textContent")
    assert found == "MM-GAN <b>& friends"
