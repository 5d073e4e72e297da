"""The report of a results table: its numbers, its words, its look in a browser.

All numbers are synthetic (`synthetic_results`); they are checked against scipy.
"""

from __future__ import annotations

import csv
import html
import json
import re
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from synthetic_results import ARCHS, row, synthetic_rows, synthetic_table, typed

from fastadv.cli import report as command
from fastadv.reporting.literature import (
    Record,
    accuracy_of_file,
    imagenet_accuracy,
    judged_accuracy,
    limited_accuracy,
    scratch_accuracy,
    shares_explained,
    transfer_accuracy,
)
from fastadv.reporting.threats import threat
from fastadv.reporting.transfer.cells import make_cells
from fastadv.reporting.transfer.comparisons import compare, image_pairs
from fastadv.reporting.transfer.findings import wins_finding
from fastadv.reporting.transfer.sections import study_sections
from fastadv.reporting.transfer.study import Study
from fastadv.results.table import ResultsTable

TITLES = [
    "Robust against standard",
    "Accuracy against eps",
    "Width",
    "Source accuracy against transfer",
    "Source accuracy over all radii",
    "Granularity",
    "Few training images",
    "Gain with few training images",
    "Number of trained blocks",
    "Robust accuracy after transfer",
    "By class",
]


# ---- cells and comparisons ----


def test_comparisons_choose_on_validation_and_test_by_seed() -> None:
    rows = [
        row(source_eps=eps, source=str(eps), seed=seed, value=v + d, val_value=val)
        # eps 1 is best on test images, eps 3 on validation images.
        for eps, v, val in ((0.0, 50, 50), (1.0, 60, 51), (3.0, 55, 59))
        for seed, d in enumerate((0.0, 1.0, 3.0 if eps else 2.0))
    ]
    [found] = compare(make_cells(typed(rows)))
    assert found.robust.label == "l2 3"
    assert found.by == "val"
    theirs = stats.ttest_rel([55, 56, 58], [50, 51, 52])
    assert found.difference == pytest.approx(16 / 3)
    assert found.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert found.interval()[1:] == pytest.approx((interval.low, interval.high))
    [corrected] = Study(make_cells(typed(rows)), {}).tests.groups["best"]
    # The better of two radii is tested, so both count.
    assert corrected.primary
    assert corrected.adjusted == pytest.approx(2 * theirs.pvalue)
    assert corrected.significant == (2 * theirs.pvalue < 0.05)


def test_learning_rates_run_apart_count_once() -> None:
    """The one that was best on validation images stands for its seed."""
    rates = ((0.1, 70.0, 40.0), (0.01, 60.0, 55.0))
    rows = [
        row(
            value=value,
            val_value=val,
            identity=str(lr),
            hyperparameters=f'{{"lr": {lr}}}',
        )
        for lr, value, val in rates
    ]
    [cell] = make_cells(typed(rows))
    assert cell.values == {0: 60.0}
    # Of the same number computed twice, the newest counts.
    again = {"value": 61.0, "ci_low": 58.0, "ci_high": 63.0}
    [cell] = make_cells(typed([*rows, rows[1] | again]))
    assert cell.values == {0: 61.0}
    assert cell.interval() == (61.0, 58.0, 63.0)  # one seed: the row's own


def test_one_seed_is_never_called_significant() -> None:
    rows = [row(source_eps=eps, value=50 + 10 * eps) for eps in (0.0, 3.0)]
    found = compare(make_cells(typed(rows)))
    assert found[0].p is None
    assert wins_finding(found).endswith("This is not tested: a single seed.")
    sections = study_sections(Study(make_cells(typed(rows)), {}))
    assert "significan" not in " ".join(f for s in sections for f in s.findings).lower()


def test_seeds_that_agree_exactly_are_not_a_test() -> None:
    """On few test images they often do; their interval is that of the images."""
    rows = [
        row(source_eps=eps, seed=seed, value=value, ci_low=86.0, ci_high=93.0)
        for eps, value in ((0.0, 90.0), (1.0, 90.2))
        for seed in range(3)
    ]
    [found] = compare(make_cells(typed(rows)))
    assert (found.p, found.adjusted, found.significant) == (None, None, False)
    assert found.robust.interval() == pytest.approx((90.2, 86.0, 93.0))
    study = Study(make_cells(typed(rows)), {})
    [section] = study_sections(study)
    assert section.findings == [
        "Primary test (synthetic_set, fixed features, resnet18): l2 1 is 0.2 points "
        "higher (not tested: the seeds agree exactly) than standard training."
    ]
    [line] = section.tables[0].rows
    assert "not tested: the seeds agree exactly" in line
    assert "+0.20" in line


def test_other_settings_are_never_compared() -> None:
    for change in (
        {"dataset": "b"}, {"mode": "full_network"}, {"protocol": "salman2020"},
        {"select_on": "test"}, {"resolution": 64}, {"downscale": 32}, {"arch": "resnet50"},
        {"num_pool": 500}, {"hyperparameters": '{"solver": "sgd"}'}, {"seed": 5},
    ):  # fmt: skip
        rows = [row(), row(source_eps=1.0, value=60.0) | change]
        assert compare(make_cells(typed(rows))) == [], change
    assert len(compare(make_cells(typed([row(), row(source_eps=1.0)])))) == 1


# ---- published numbers ----


def test_published_numbers_are_those_of_the_papers() -> None:
    # The tables of four networks; six others; linf sources; stylized target and source.
    assert len(transfer_accuracy()) == 1416 + 84 + 40 + 10 + 48
    assert len(limited_accuracy()) == 620
    assert len(imagenet_accuracy()) == 67
    key = ("aircraft", "fixed_feature", None, "resnet18", ("l2", 0.5))
    assert transfer_accuracy()[key].value == 41.40
    other = ("cifar10", "full_network", None, "densenet161", (None, 0.0))
    assert transfer_accuracy()[other].value == 97.84
    linf = ("cifar10", "full_network", None, "resnet18", threat("linf", "0.5/255"))
    assert transfer_accuracy()[linf].value == 96.85
    texture = ("aircraft", "full_network", None, "resnet18", "texture")
    assert transfer_accuracy()[texture].value == 77.08
    few = ("cifar10", "resnet50", 3, 100, ("linf", round(4 / 255, 6)))
    assert limited_accuracy()[few] == Record(
        49.9, "utrera2021", "last epoch, mean over seeds"
    )
    # What was published of the best epoch alone is said to be that.
    nine = limited_accuracy()["cifar10", "resnet50", 9, 100, threat("linf", "8/255")]
    assert nine.selected.startswith("best logged epoch on test images")
    assert shares_explained() == {
        ("cifar10", "full_network", (None, 0.0)): 0.79,
        ("cifar10", "full_network", ("l2", 3.0)): 0.98,
    }
    assert scratch_accuracy()["svhn", "resnet50"].value == 95.15
    assert judged_accuracy("robustbench:Salman2020Do_R50")[1].value == 34.96
    assert accuracy_of_file("x/resnet18_l2_eps3.ckpt") == 53.12
    assert accuracy_of_file("x/resnet18_l2_eps3.safetensors") is None
    # Their headline: robust sources win 36 of 48 cells on fixed features.
    wins = 0
    archs = {"resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4"}
    found = {
        k: v.value
        for k, v in transfer_accuracy().items()
        if k[1] == "fixed_feature" and k[3] in archs and k[4][0] in ("l2", None)
    }
    cells = {(d, a) for d, _, side, a, _ in found if side is None}
    for dataset, arch in cells:
        of_cell = {
            k[4][1]: v
            for k, v in found.items()
            if (k[0], k[2], k[3]) == (dataset, None, arch)
        }
        wins += max(v for eps, v in of_cell.items() if eps) > of_cell[0.0]
    assert (wins, len(cells)) == (36, 48)


def test_only_all_images_are_compared_with_the_published_table() -> None:
    rows = [row(dataset="mine", source_eps=0.5)]
    [cell] = make_cells(typed(rows))
    assert cell.published({}) is None
    assert cell.published({"mine": "aircraft"}) == 41.40
    [part] = make_cells(typed([rows[0] | {"num_available": 2000}]))
    assert part.published({"mine": "aircraft"}) is None
    [old] = make_cells(
        typed([rows[0] | {"num_available": None}])
    )  # of schema version 1
    assert old.published({"mine": "aircraft"}) is None


# ---- the report ----


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    results = synthetic_table(folder / "synthetic-results")
    words = [
        str(results),
        "-o",
        str(folder / "report.html"),
        "--export",
        str(folder / "x"),
    ]
    assert command.main([*words, "--title", "Synthetic results"]) == 0
    return folder


def test_the_page_shows_the_command_that_makes_it_again(made: Path) -> None:
    page = (made / "report.html").read_text()
    [shown] = re.findall(r"<pre><code>(.*?)</code></pre>", page)
    words = shlex.split(html.unescape(shown))
    assert words[:2] == ["fastadv-report", str(made / "synthetic-results")]
    assert words[-2:] == ["--title", "Synthetic results"]


def test_sections_are_those_there_are_data_for(made: Path) -> None:
    text = (made / "report.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", text) == [*TITLES, "All numbers"]
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "<cat>" not in text
    assert "&lt;cat&gt;" in text
    few = [row(source_eps=eps) for eps in (0.0, 3.0)]
    found = [s.title for s in study_sections(Study(make_cells(typed(few)), {}))]
    assert found == ["Robust against standard"]


def test_findings_say_what_an_independent_count_says() -> None:
    cells = make_cells(typed(synthetic_rows()))
    sections = {s.title: s for s in study_sections(Study(cells, {}))}
    found, few = compare(Study(cells, {}).most), image_pairs(cells)
    p_values, radii = {}, {}
    for each in (*found, *few):
        [ours], [theirs] = each.robust.cells, each.standard.cells
        robust = [r.value for r in ours.rows.values()]
        standard = [r.value for r in theirs.rows.values()]
        p_values[ours, theirs] = stats.ttest_rel(robust, standard).pvalue
        # On cifar10 the best of three radii is tested, elsewhere there is one.
        radii[ours, theirs] = 3 if each.condition.dataset == "cifar10" else 1
    assert len(p_values) == 12  # svhn with most images is in both
    # Holm, as in the definition: step down until one fails. Radii that were not chosen
    # count as tests that fail.
    certain_pairs = set()
    for rank, pair in enumerate(sorted(p_values, key=p_values.__getitem__)):
        if p_values[pair] * (sum(radii.values()) - rank) >= 0.05:
            break
        certain_pairs.add(pair)
    certain = sum((e.robust.first, e.standard.first) in certain_pairs for e in found)
    ahead = sum(each.difference > 0 for each in found)
    assert certain >= 6  # the synthetic gains are far beyond the noise
    assert len(found) == 8
    [primary, first, second] = sections["Robust against standard"].findings
    assert "mean of 3 architectures" in primary
    assert first.startswith(
        f"The robust source is ahead in {ahead} of 8 comparisons and behind in "
        f"{8 - ahead}; on average it is 8.0 points ahead."
    )
    assert first.endswith(f"Significant: {certain} in its favour, 0 against it.")
    # Those of cifar10 with all images have one; those of svhn are of few.
    assert "have a published counterpart" in second
    assert len(few) == 6
    gain = {(p.condition.k_blocks, p.n): p.difference for p in few}
    assert gain[3, 100] > 2
    assert gain[3, 1600] < 2
    [table] = sections["Source accuracy against transfer"].tables
    line = table.rows[0]
    x = [imagenet_accuracy()[a, (None, 0.0)] for a in ARCHS]
    y = [
        np.mean([r.value for r in c.rows.values()])
        for c in cells
        if c.condition.dataset == "cifar10"
        and not c.condition.downscale
        and not c.robust
    ]
    theirs = stats.linregress(x, y)
    assert line[2] == "standard"
    assert float(str(line[4])) == pytest.approx(theirs.rvalue**2, abs=0.005)
    assert float(str(line[list(table.columns).index("slope")])) == pytest.approx(
        theirs.slope, abs=0.005
    )


def test_exports_are_complete_and_readable(made: Path) -> None:
    names = {path.name for path in (made / "x").iterdir()}
    drawn = [*TITLES[:9]]
    for title in drawn:
        stem = title.lower().replace(" ", "-")
        assert {f"{stem}.png", f"{stem}.svg"} <= names
        pixels = np.asarray(Image.open(made / "x" / f"{stem}.png").convert("L"))
        assert 0.002 < (pixels < 200).mean() < 0.6  # something is drawn
        ElementTree.parse(made / "x" / f"{stem}.svg")
    with open(made / "x" / "all-numbers.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(make_cells(typed(synthetic_rows())))
    # No two files say the same.
    tables = [path.read_text() for path in (made / "x").glob("*.csv")]
    assert len(set(tables)) == len(tables)
    latex = (made / "x" / "all-numbers.tex").read_text()
    assert r"wide\_resnet50\_2" in latex
    assert latex.count(r"\\") == len(lines) + 1


def test_findings_as_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(made / "synthetic-results"), "-o", str(made / "b.html"), "--json"]
    assert command.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["findings"]) <= set(TITLES)
    assert found["report"] == str(made / "b.html")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["{none}"], "there is no results table at"),
        (["{empty}"], "is empty"),
        (["{results}", "--compare", "svhn"], "must be MINE=PUBLISHED"),
        (["{results}", "--compare", "svhn=cifar11"], "perhaps you meant: cifar10"),
        (["{results}", "--compare", "svnh=svhn"], "perhaps you meant: svhn"),
    ],
)
def test_what_cannot_be_reported_is_said(
    words: list[str],
    complaint: str,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "none": tmp_path / "none",
        "empty": tmp_path / "empty",
        "results": made / "synthetic-results",
    }
    filled = [word.format(**places) for word in words]
    assert command.main([*filled, "-o", str(tmp_path / "r.html")]) != 0
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> str:
    names = (
        "chromium",
        "chromium-browser",
        "google-chrome",
        "chrome",
        "headless_shell",
    )
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(names)} is on PATH")
    return found


def _browse(browser: str, folder: Path, *words: str) -> str:
    base = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    done = subprocess.run(
        [browser, *base, "--hide-scrollbars", *words],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("theme", "number"), [("dark", 0), ("light", 1)])
def test_it_is_readable_in_both_themes(
    theme: str, number: int, made: Path, browser: str, tmp_path: Path
) -> None:
    shot = tmp_path / "shot.png"
    _browse(
        browser,
        tmp_path / "profile",
        f"--blink-settings=preferredColorScheme={number}",
        "--window-size=1150,1400",
        f"--screenshot={shot}",
        (made / "report.html").as_uri(),
    )
    pixels = np.asarray(Image.open(shot).convert("L")).astype(int)
    page = np.median(pixels)
    assert page < 60 if theme == "dark" else page > 200
    # Text stands out against the page, and there is a good deal of it.
    assert (abs(pixels - page) > 120).mean() > 0.01
    colours = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3).astype(int)
    blue = (colours[:, 2] - colours[:, 0] > 80).mean()
    orange = (colours[:, 0] - colours[:, 2] > 80).mean()
    assert min(blue, orange) > 0.01  # bars of both kinds of sources


def test_no_column_of_the_main_table_is_cut_off(browser: str, tmp_path: Path) -> None:
    """On a screen 1200 pixels wide; the page says how wide the table wants to be."""
    rows = [
        row(
            dataset="caltech101",
            mode=mode,
            source_eps=eps,
            seed=seed,
            num_available=3030,
            value=v + seed * (1 + eps),
        )
        for mode in ("fixed_feature", "full_network")
        for eps, v in ((0.0, 60.0), (0.25, 62.0))
        for seed in range(3)
    ]
    ResultsTable(tmp_path / "results").append(typed(rows))
    page = tmp_path / "report.html"
    assert command.main([str(tmp_path / "results"), "-o", str(page)]) == 0
    script = """<script>
const table = document.querySelector(".table");
document.title = `wants ${table.scrollWidth} has ${table.clientWidth}`;
</script></body>"""
    page.write_text(page.read_text().replace("</body>", script))
    words = ("--window-size=1200,900", "--dump-dom", page.as_uri())
    dumped = _browse(browser, tmp_path / "profile", *words)
    title = re.search(r"<title>wants (\d+) has (\d+)</title>", dumped)
    assert title is not None
    wants, has = map(int, title.groups())
    assert wants == has > 900


def test_tables_sort_by_a_click(made: Path, browser: str, tmp_path: Path) -> None:
    """A copy of the page clicks its own header, and shows what the first row is then."""
    text = (made / "report.html").read_text()
    script = """<script>
const table = document.querySelector("table");
const titles = [...table.querySelectorAll("th button")];
const place = titles.findIndex((b) => b.textContent === "difference");
titles[place].click();
const values = [...table.tBodies[0].rows].map((r) => r.cells[place].textContent);
document.title = "sorted " + values.join(" ");
</script></body>"""
    copy = tmp_path / "clicked.html"
    copy.write_text(text.replace("</body>", script))
    dumped = _browse(browser, tmp_path / "profile", "--dump-dom", copy.as_uri())
    title = re.search(r"<title>sorted (.*?)</title>", dumped)
    assert title is not None
    values = [float(value) for value in re.findall(r"(\S+) \[", title[1])]
    assert len(values) == 8
    assert values == sorted(values)
    assert values != [
        round(c.difference, 2) for c in compare(make_cells(typed(synthetic_rows())))
    ]
