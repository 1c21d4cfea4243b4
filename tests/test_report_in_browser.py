"""The page in a browser: nothing is cut on a wide screen, on a phone, in the dark, or on paper. Needs chromium and pdfinfo."""

import html
import json
import re
import shutil
import subprocess

import pytest
from report_tree import ONE_SEED, built

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no Chromium here (Debian: apt-get install chromium poppler-utils)"),
]
# Put into the page: writes into its title how far the page is wider than the screen, and what sticks out of it without a way to scroll.
LOOK = """
<script>
const cut = [...document.querySelectorAll("main *")].filter((element) => {
  const box = element.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !element.closest(".scroll, pre, svg, details:not([open])");
}).map((element) => element.tagName + "." + element.className);
document.title = JSON.stringify({ wider: document.documentElement.scrollWidth - document.documentElement.clientWidth, cut });
</script></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with built(tmp_path_factory.mktemp("browser"), ONE_SEED) as (root, _):
        return root / "report.html"


def browse(*options):
    asked = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *options]
    return subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True).stdout


def looked_at(page, width, options=(), more=""):
    """What LOOK finds in a frame of a width, as a window of Chromium is never narrower than 500 pixels. more: HTML before the end."""
    page.with_name("looked.html").write_text(page.read_text().replace("</body>", more + LOOK))
    frame = page.with_name("frame.html")
    frame.write_text(
        f'<iframe id=f src="looked.html" width={width} height=900></iframe><script>f.onload = () => '
        "document.title = f.contentDocument.title</script>"
    )
    asked = ["--allow-file-access-from-files", f"--window-size={width + 100},1000", "--dump-dom", *options]
    found = re.search(r"<title>(.*?)</title>", browse(*asked, frame.as_uri()))[1]
    return json.loads(html.unescape(found))


@pytest.mark.parametrize("options", [[], ["--enable-features=WebContentsForceDark"]], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_of_the_screen(page, width, options):
    assert looked_at(page, width, options) == {"wider": 0, "cut": []}


def test_what_sticks_out_is_seen(page):
    found = looked_at(page, 390, more="<main><p class=wide style='width: 500px'>x</p></main>")
    assert found["wider"] > 50 and found["cut"] == ["P.wide"]


def test_on_paper_the_first_page_is_the_summary_and_all_pages_are_numbered(page):
    pdf = page.with_suffix(".pdf")
    browse(f"--print-to-pdf={pdf}", "--no-pdf-header-footer", page.as_uri())
    if not shutil.which("pdftotext"):
        pytest.skip("no pdftotext here (Debian: apt-get install poppler-utils)")
    pages = subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True, check=True).stdout.split(
        "\f"
    )
    pages = [text for text in pages if text.strip()]
    assert len(pages) <= 8
    assert "Training images are given out by" in pages[0] and "Arms compared" not in pages[0]
    assert "What the columns mean" in "".join(pages) and "changes" not in pages[0]
    for number, text in enumerate(pages, start=1):
        assert text.split()[-1] == f"{number}/{len(pages)}" or text.split()[-3:] == [str(number), "/", str(len(pages))]
    # In the order of the text, as terms stand in two columns; of a fold that is closed on the screen.
    shown = subprocess.run(["pdftotext", "-raw", pdf, "-"], capture_output=True, text=True, check=True).stdout
    assert "Number of generated images that are copies of a training image" in " ".join(shown.split())
