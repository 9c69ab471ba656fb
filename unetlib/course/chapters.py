"""The chapters: open them in JupyterLab, execute them, and write them as pages."""

import atexit
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from unetlib.course.pages import Pages, room_for_viewers
from unetlib.course.start import REPOSITORY, is_short
from unetlib.data.patients import find_cases
from unetlib.data.volumes import ASSUME
from unetlib.support.errors import UnetlibError
from unetlib.support.files import atomic
from unetlib.support.jobs import progress
from unetlib.support.messages import say
from unetlib.support.paths import takes_paths

NOTEBOOKS = REPOSITORY / "notebooks"
QUIET = (
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
)


def open_lab(flags: Sequence[str] = ()) -> None:
    """Run JupyterLab on the notebooks until it is stopped; it asks no other machine for news, versions or extensions.

    Raises `UnetlibError` for the user root, whom JupyterLab refuses unless `flags` allow it.
    """
    _chapters()
    if getattr(os, "geteuid", lambda: 1)() == 0 and not any(flag.startswith("--allow-root") for flag in flags):
        raise UnetlibError(
            "JupyterLab refuses to run as root, since an intruder could then do everything on this machine. Start it "
            "as another user; in a container, allow it with --allow-root (make lab LAB=--allow-root)."
        )
    from jupyterlab.labapp import LabApp

    LabApp.launch_instance([str(NOTEBOOKS), *QUIET, *flags])


@takes_paths
def run_course(out: Path, data: Path | None = None, assume: str | None = None) -> None:
    """Run all chapters on `data` (the embedded cohort by default) in `out`, and write each as a page, with an index.

    `assume` as in `find_cases`. What an earlier call has prepared and trained in `out/work` is reused. For the pages
    see `Pages`. Raises `UnetlibError` naming chapter and cell when one fails.
    """
    environment = {"COURSE_DATA": str(data.resolve())} if data else {}
    environment |= {ASSUME: assume} if assume else {}
    if data:
        find_cases(data, assume=assume)  # raises for what a chapter would find only after minutes
    pages = Pages(out, _chapters())
    for path in pages.chapters:
        notebook = nbformat.read(path, as_version=4)
        notebook = _execute(path, out, {**environment, **room_for_viewers(notebook)})
        say(str(pages.write(path, notebook)))
    say(str(pages.index))


def refresh_notebooks() -> None:
    """Execute chapters and solutions where they lie, from an empty folder of results, and keep their outputs."""
    shutil.rmtree(NOTEBOOKS / "work" / ("short" if is_short() else "synthetic"), ignore_errors=True)
    for path in (*_chapters(), *sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))):
        notebook = _execute(path, path.parent)
        with atomic(path) as temporary:
            nbformat.write(notebook, temporary)


def _chapters() -> list[Path]:
    chapters = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    if not chapters:
        raise UnetlibError(f"{NOTEBOOKS} holds no notebooks: the course runs from a clone of its repository.")
    return chapters


def _execute(path: Path, folder: Path, environment: dict[str, str] | None = None) -> Any:
    """Return the notebook at `path`, executed in `folder` with these variables added to the environment.

    Raises `UnetlibError` when a cell fails or the kernel dies.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)
    with progress(cells, path.stem, "cell") as bar:
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            store_widget_state=False,  # a page with widget state shows nothing without a network
            record_timing=False,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no warning about encryption within one machine
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
            on_cell_complete=lambda **_: bar.update(),
        )
        try:
            _run_cells(client, {**os.environ, **(environment or {})})
        except CellExecutionError as error:
            outputs = [[output.output_type for output in cell.get("outputs", ())] for cell in notebook.cells]
            failed = next(number for number, kinds in enumerate(outputs, 1) if "error" in kinds)
            raise UnetlibError(f"{path.name} failed in cell {failed}: {error.ename}: {error.evalue}") from error
        except RuntimeError as error:  # of nbclient
            raise UnetlibError(
                f"the kernel of {path.name} died ({error}), perhaps for lack of memory. Close other programs, then "
                "give the same command again: what was prepared and trained is reused."
            ) from error
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _run_cells(client: NotebookClient, environment: dict[str, str]) -> None:
    """Execute a notebook; when this is stopped, end its kernel first.

    The client runs in its own thread: in the main one it would catch the signals and print tracebacks.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.execute, env=environment)
        try:
            running.result()
        except KeyboardInterrupt:
            while not running.done():  # its kernel may be about to start
                process = getattr(getattr(client.km, "provisioner", None), "process", None)
                if process is not None:
                    process.kill()
                wait([running], timeout=0.1)
            atexit.unregister(client._cleanup_kernel)  # which fails where the kernel was about to start
            raise
