"""A real JupyterLab and a real browser on this machine, for the tests and the benchmark of the viewer.

`open_lab` starts both and stops both; `Notebook` is a notebook open in that browser. Nothing leaves the machine:
a request to any other address is refused and remembered in `Lab.refused`.
"""

import json
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat.sign
import psutil
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect, sync_playwright

import unetlib
from figures.make import find_browser
from unetlib.course.chapters import QUIET

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"checkForUpdates": False, "fetchNews": "false"},
    "@jupyterlab/apputils-extension/themes": {"theme": "JupyterLab Light"},
    "@jupyter-widgets/jupyterlab-manager/plugin": {"saveState": True},  # the harder case for a notebook's size
}
READY = '.unetlib-viewer[data-ready="1"]'
TIMEOUT = 60_000  # ms: nothing here takes long, but the machine may be busy
expect.set_options(timeout=TIMEOUT)
IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
IN_FRONT = """path => {
  const opened = [...jupyterapp.shell.widgets("main")].find((widget) => widget.context?.path.endsWith(path));
  if (opened && opened !== jupyterapp.shell.currentWidget) jupyterapp.shell.activateById(opened.id);
  return opened === jupyterapp.shell.currentWidget && opened?.sessionContext?.session?.kernel?.status === "idle";
}"""
FRAME = "() => new Promise(requestAnimationFrame)"  # done when the page has drawn once more
EXECUTE = """async code => {
  const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({code, store_history: false});
  let printed = "", error = "";
  future.onIOPub = ({header, content}) => {
    if (header.msg_type === "stream" && content.name === "stdout") printed += content.text;
    if (header.msg_type === "error") error = content.traceback.join("\\n");
  };
  await future.done;
  return [printed, error];
}"""


class Notebook:
    """A notebook open in JupyterLab, all its cells run."""

    def __init__(self, page: Page, path: Path):
        self.page, self.path = page, path

    def command(self, name: str, **options: Any) -> Any:
        """Run a command of JupyterLab, as its menus do, and return what it gives."""
        return self.page.evaluate("([name, options]) => jupyterapp.commands.execute(name, options)", [name, options])

    def python(self, code: str) -> str:
        """Run code in the notebook's kernel and return what it printed.

        It goes through the page's own connection, so behind all that the widgets have sent before it.
        """
        printed, error = self.page.evaluate(EXECUTE, code)
        assert not error, error
        return printed

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the kernel, by way of JSON."""
        return json.loads(self.python(f"import json; print(json.dumps({expression}))"))

    def comes_to(self, expression: str, wanted: Any) -> None:
        """Wait until an expression in the kernel has a value; what people do in the page arrives a little later."""
        for _ in range(300):
            if (found := self.value(expression)) == wanted:
                return
            self.page.evaluate(FRAME)
        raise AssertionError(f"{expression} is {found}; {wanted} was expected.")

    def shut_down(self) -> None:
        """End the kernel of the notebook in front."""
        self.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    def save(self) -> None:
        """Save the notebook with its outputs."""
        self.command("docmanager:save")

    def reopen(self, name: str, content: nbformat.NotebookNode, trusted: bool) -> Locator:
        """Write a notebook with its outputs, open it beside this one, with a new kernel, and return its panel."""
        path = self.path.with_name(f"{name}.ipynb")
        nbformat.write(content, path)
        notary = nbformat.sign.NotebookNotary(data_dir=str(path.parents[1] / "data"))
        (notary.sign if trusted else notary.unsign)(nbformat.read(path, 4))
        self.command("docmanager:open", path=path.name)
        self.page.wait_for_function(IN_FRONT, arg=path.name)
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")

    def theme(self, name: str) -> None:
        """Switch to "JupyterLab Light" or "JupyterLab Dark"."""
        self.command("apputils:change-theme", theme=name)
        is_light = json.dumps("Light" in name).lower()
        self.page.wait_for_function(f"document.body.dataset.jpThemeLight === '{is_light}'")


class Lab:
    """A running JupyterLab and the browser that looks at it."""

    def __init__(self, folder: Path, address: str, browser: Browser):
        self.folder, self.address, self.browser = folder, address, browser
        self.refused: list[str] = []
        self.window = self.context()

    def context(self, **options: Any) -> BrowserContext:
        """Return a browser window with nothing of the other windows, which reaches this machine only."""
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        context.set_default_timeout(TIMEOUT)
        context.route(lambda url: urlsplit(url).hostname not in (None, "127.0.0.1"), self._refuse)
        return context

    def _refuse(self, route: Route) -> None:
        self.refused.append(route.request.url)
        route.abort()

    @contextmanager
    def notebook(self, name: str, cells: list[str], viewers: int = 1) -> Iterator[Notebook]:
        """Write a notebook, open it, run it, and wait until it shows so many viewers."""
        path = self.folder / "notebooks" / f"{name}.ipynb"
        nbformat.write(_notebook(cells), path)
        with self.window.new_page() as page:
            page.goto(self.address.replace("?", f"/workspaces/{name}/tree/{path.name}?"))
            notebook = Notebook(page, path)
            page.wait_for_function(IDLE)
            if not notebook.command("notebook:run-all-cells"):
                raise RuntimeError(f"A cell failed:\n{page.locator('.jp-OutputArea-output').last.inner_text()}")
            expect(page.locator(READY)).to_have_count(viewers)
            yield notebook
            notebook.shut_down()


def _notebook(cells: list[str]) -> nbformat.NotebookNode:
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=metadata)


@contextmanager
def open_lab(folder: Path) -> Iterator[Lab]:
    """Start JupyterLab in an empty folder and a browser without a window; stop both at the end, however it comes."""
    with serve(folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        try:
            yield Lab(folder, address, browser)
        finally:
            browser.close()


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Start JupyterLab on a free port with a token, all its files in `folder`; give its address with the token."""
    env = os.environ | {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    env |= {f"JUPYTERLAB_{kind}_DIR": str(folder / kind.lower()) for kind in ("SETTINGS", "WORKSPACES")}
    source = str(Path(unetlib.__file__).parents[1])  # the kernels import what the tests import
    env |= {"JUPYTER_TOKEN": secrets.token_hex(), "IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": source}
    for name, choices in SETTINGS.items():
        file = folder / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(choices))
    (folder / "notebooks").mkdir()
    words = [
        sys.executable,
        "-m",
        "jupyterlab",
        *QUIET,
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        "--port=0",
        "--ip=127.0.0.1",
    ]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(words, cwd=folder / "notebooks", env=env, stdout=log, stderr=log)
        try:
            yield _address(process, folder)
        finally:
            _stop(process, folder)


def _address(process: subprocess.Popen, folder: Path) -> str:
    """Wait until the server tells where it listens."""
    file = folder / "runtime" / f"jpserver-{process.pid}.json"
    for _ in range(600):
        with suppress(OSError, json.JSONDecodeError):  # not there yet, or half written
            server = json.loads(file.read_text())
            return f"{server['url']}lab?token={server['token']}"
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            break
    raise RuntimeError(f"JupyterLab did not start:\n{(folder / 'server.log').read_text()[-3000:]}")


def _stop(process: subprocess.Popen, folder: Path) -> None:
    """Ask the server to end its kernels and itself; end whatever is left of them."""
    family = [process]
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    with suppress(Exception):  # it may never have come up
        address = urlsplit(_address(process, folder))
        url = f"http://{address.netloc}/api/shutdown?{address.query}"
        urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=5).close()
        process.wait(10)
    for member in family:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            member.kill()
    process.wait()
