"""What the studies on real patients have measured, as a chapter shows it."""

from pathlib import Path

from IPython.display import Markdown, display

from unetlib.course.start import REPOSITORY
from unetlib.support.paths import takes_paths

STUDIES = REPOSITORY / "studies"


@takes_paths
def show_measured(name: str, folder: Path = STUDIES) -> None:
    """Show what a study has measured so far, and a link to its page; `name`: "best", "regions" or "networks".

    `folder` holds the page, such as `REGIONS.md`; without it, a sentence says so.
    """
    page = f"{name.upper()}.md"
    if not (folder / page).exists():
        print(f"There is no studies/{page} here; it is in the repository of the library.")
        return
    text = (folder / page).read_text("utf-8")
    found = text.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0].strip()
    display(Markdown(f"{found}\n\n[studies/{page}](../studies/{page}) holds the protocol and all results."))
