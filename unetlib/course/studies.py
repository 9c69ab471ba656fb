"""What the studies on real patients have measured, as a chapter shows it."""

from pathlib import Path

from IPython.display import Markdown, display

from unetlib.course.start import REPOSITORY
from unetlib.support.files import takes_paths

STUDIES = REPOSITORY / "studies"
STEPS = (
    "slices without tumour, too",
    "cut to the head",
    "Dice + cross-entropy",
    "averaged weights",
    "neighbouring slices",
    "again: turn, scale, bend",
)


@takes_paths
def show_steps(folder: Path = STUDIES) -> None:
    """Show six steps of the first study, one for each of sections 5.2 to 5.7, and a link to all of them.

    `folder` holds `ABLATION.md`; without it, a sentence says so.
    """
    if not (text := _read(folder, "ABLATION.md")):
        return
    table = [line.split("|")[1:5] for line in text.splitlines() if line.startswith("|")]
    heading, rule, *rows = table  # step, changed, Dice, gain; the other columns are left to the page
    shown = [row for row in rows if row[0].strip() in STEPS]
    lines = ["|" + "|".join(row) + "|" for row in (heading, rule, *shown)]
    link = f"[studies/ABLATION.md](../studies/ABLATION.md) holds all {len(rows)} steps, each with its gain and time."
    display(Markdown("\n".join([*lines, "", link])))


@takes_paths
def show_measured(name: str, folder: Path = STUDIES) -> None:
    """Show what the study of that name, "regions" or "networks", has measured so far, and a link to its page.

    `folder` holds the page, such as `REGIONS.md`; without it, a sentence says so.
    """
    page = f"{name.upper()}.md"
    if text := _read(folder, page):
        found = text.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0].strip()
        display(Markdown(f"{found}\n\n[studies/{page}](../studies/{page}) holds the protocol and all results."))


def _read(folder: Path, page: str) -> str:
    """Return the text of a page; without it, say where it is and return an empty text."""
    if (folder / page).exists():
        return (folder / page).read_text("utf-8")
    print(f"There is no studies/{page} here; it is in the repository of the library.")
    return ""
