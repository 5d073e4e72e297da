"""The report file: complete in itself, escaped, and it shows what it was given."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from fastadv.attacks import PGD, ThreatModel
from fastadv.errors import OutputError
from fastadv.models import NormalizedModel
from fastadv.reporting import (
    Bar,
    Section,
    Table,
    adversarial_examples,
    format_percent_ci,
    grouped_bars,
    source_colors,
    write_report,
)

EVIL = "<script>alert(1)</script>"
GROUPS = {
    "clean images": {"standard": Bar(90.0, 88.0, 92.0), "l2 0.5": Bar(80.0)},
    "PGD": {"standard": Bar(10.0), "l2 0.5": Bar(60.0)},
}
COLORS = source_colors(["standard", "l2 0.5"])
_VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags in order, the text of every element, and whether all of them close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory,
    model: NormalizedModel,
    images: Tensor,
    labels: Tensor,
) -> Path:
    attack = PGD(ThreatModel("l2", 0.5), num_steps=2)
    # Every class has the hostile name, so that some caption is sure to show it.
    names = ["<b>&amp;$x$"] * 4
    figure = adversarial_examples({EVIL: model}, images, labels, names, attack)
    rows = [
        [EVIL, format_percent_ci(61.25, 60, 62.5), 10],
        ["l2 0.5", format_percent_ci(7.0, 6, 8.5), None],
        ["l2 3", format_percent_ci(70.5, 69, 72), 9.5],
    ]
    sections = [
        Section("Examples " + EVIL, [EVIL, "second"], [(figure, "caption " + EVIL)]),
        Section(
            "Transfer",
            figures=[(grouped_bars(GROUPS, COLORS), "bars")] * 2,
            tables=[Table(["source", "top1", "s"], rows, "all rows " + EVIL)],
            command="fastadv-transfer --out a && echo '<done>'",
        ),
    ]
    about = {"when": "2025-01-01", "torch": "2.11", "commit": None, "machine": EVIL}
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    assert write_report(path, "Title " + EVIL, sections, about) == path
    return path


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report.read_text(encoding="utf-8"))


def test_nothing_outside_is_loaded(report: Path, page: Page) -> None:
    text = report.read_text(encoding="utf-8")
    assert "http://" not in text
    assert "https://" not in text
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        target = attributes.get("href") or "#"
        assert target.startswith(("#", "data:image/png;base64,"))
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_names_cannot_become_markup(report: Path, page: Page) -> None:
    text = report.read_text(encoding="utf-8")
    assert EVIL not in text
    assert page.count("script") == 1
    assert page.count("b") == 0
    assert page.texts["h1"] == ["Title " + EVIL]
    assert page.texts["dd"][-1] == EVIL
    assert page.texts["figcaption"][0] == "caption " + EVIL
    # In the figure: row name and predictions, letter by letter.
    assert EVIL in page.texts["text"]
    assert page.texts["text"].count("<b>&amp;$x$") == 6


def test_page_is_well_formed_and_ids_are_unique(page: Page) -> None:
    assert page.open == []
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)) > 10
    for _, attributes in page.tags:
        used = [
            *re.findall(r"url\(#([^)]+)\)", " ".join(filter(None, attributes.values())))
        ]
        if (attributes.get("href") or "").startswith("#"):
            used.append(attributes["href"][1:])  # type: ignore[index]
        assert set(used) <= set(ids)


def test_images_decode_and_are_not_blank(report: Path, images: Tensor) -> None:
    found = re.findall(r"data:image/png;base64,([^\"]+)", report.read_text("utf-8"))
    assert len(found) == 9
    decoded = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        for data in found
    ]
    assert all(picture.std() > 5 for picture in decoded)
    # Embedded at their own size, exact to the bit (SVG may store rows bottom up).
    clean = images[0].permute(1, 2, 0).numpy()
    assert any(
        np.array_equal(p, clean) or np.array_equal(p[::-1], clean) for p in decoded
    )


def test_figures_follow_the_theme(page: Page) -> None:
    assert page.count("svg") == 3
    styles = " ".join(a.get("style") or "" for t, a in page.tags if t != "svg")
    for variable in ("--ink", "--muted", "--grid", "--standard", "--robust"):
        assert f"var({variable})" in styles
    assert "#1f2328" not in styles
    labels = [a["aria-label"] for t, a in page.tags if t == "svg"]
    assert labels == ["caption " + EVIL, "bars", "bars"]


def test_table_holds_every_value(page: Page) -> None:
    cells = page.texts["td"]
    assert cells == [
        *(EVIL, "61.2% [60.0, 62.5]", "10"),
        *("l2 0.5", "7.0% [6.0, 8.5]", "-"),
        *("l2 3", "70.5% [69.0, 72.0]", "9.5"),
    ]
    assert page.count("tr") == 4
    attributes = [a for t, a in page.tags if t == "td"]
    assert [a["class"] for a in attributes[:3]] == ["left", "right", "right"]
    assert [a.get("data-key") for a in attributes[1::3]] == ["61.2", "7.0", "70.5"]


def test_header_and_command(page: Page) -> None:
    assert page.texts["dt"] == ["when", "torch", "machine"]
    assert page.texts["code"] == ["fastadv-transfer --out a && echo '<done>'"]


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    pages = []
    for name in "ab":
        sections = [Section("s", figures=[(grouped_bars(GROUPS, COLORS), "bars")])]
        path = write_report(tmp_path / name, "t", sections)
        pages.append(path.read_bytes())
    assert pages[0] == pages[1]


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with pytest.raises(RuntimeError):
        write_report(path, "t", [Section("s")], {"when": Unprintable()})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_an_error_of_the_world(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not write"):
        write_report(tmp_path / "file" / "report.html", "t", [])


def test_sections_and_tables_refuse_what_they_would_misread() -> None:
    with pytest.raises(TypeError, match="list of paragraphs"):
        Section("s", "one string")
    with pytest.raises(ValueError, match="row 0 has 1 cells"):
        Table(["a", "b"], [[1]])


# ---- in a browser ----

_PROBE = """
<script>
const click = (n) => document.querySelectorAll("th button")[n].click();
const column = (n) => [...document.querySelectorAll("tbody tr")]
  .map((row) => row.cells[n].textContent).join("|");
const seen = [];
click(1); seen.push(column(1));
click(1); seen.push(column(1));
click(2); seen.push(column(2));
click(2); seen.push(column(2));
const svg = document.querySelector("figure svg").getBoundingClientRect();
seen.push(svg.width > 200 && svg.height > 200 ? "drawn" : "blank");
document.body.textContent = "SEEN:" + seen.join(";") + ":END";
</script>
"""


def _chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no chromium on PATH: apt-get install chromium to run this test")


def _browse(*arguments: str, profile: Path) -> str:
    # Without a profile of its own it would join, or fight with, a browser in use.
    command = [
        *(_chromium(), "--headless", "--no-sandbox", "--disable-gpu"),
        *("--hide-scrollbars", f"--user-data-dir={profile}", *arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_click_sorts_numbers_by_value(report: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe.html"
    text = report.read_text(encoding="utf-8")
    probe.write_text(text.replace("</body>", _PROBE + "</body>"), encoding="utf-8")
    dom = _browse("--dump-dom", probe.as_uri(), profile=tmp_path / "profile")
    match = re.search(r"SEEN:(.*):END\s*</body>", dom)
    assert match is not None
    up, down, missing_up, missing_down, drawn = match[1].split(";")
    assert up == "7.0% [6.0, 8.5]|61.2% [60.0, 62.5]|70.5% [69.0, 72.0]"
    assert down == "|".join(reversed(up.split("|")))
    assert (missing_up, missing_down) == ("9.5|10|-", "10|9.5|-")
    assert drawn == "drawn"


@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
def test_the_page_follows_the_color_scheme(
    report: Path, tmp_path: Path, scheme: int, dark: bool
) -> None:
    shot = tmp_path / "shot.png"
    _browse(
        f"--blink-settings=preferredColorScheme={scheme}",
        "--window-size=1000,1200",
        f"--screenshot={shot}",
        report.as_uri(),
        profile=tmp_path / "profile",
    )
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape[1] == 1000
    background = int(np.median(pixels))
    assert background < 60 if dark else background > 200
    # Title and figures stand out from it.
    assert (np.abs(pixels.astype(int) - background) > 120).mean() > 0.005
