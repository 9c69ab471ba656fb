"""Nothing of the library executes what it reads, talks to another machine, or opens this one."""

import ast
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.lab import _address, _stop

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "unetlib").rglob("*.py"))
NETWORK = {"socket", "ssl", "http", "urllib", "urllib3", "requests", "httpx", "aiohttp", "ftplib", "smtplib"}
EXECUTES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "code"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "pickle.load", "pickle.loads"}
TOP = {"README.md", "environment.yml", "notebooks", "unetlib", "tests", "figures", "benchmarks", "studies"}
TOP |= {"pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}
TOP |= {".ci", ".gitignore"}
# Put on the path as sitecustomize.py: every Python process there then notes and refuses what leaves the machine.
GUARD = """
import os, sys
def guard(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        where = args[1] if event in ("socket.connect", "socket.sendto") else args[0]
        host = where[0] if isinstance(where, tuple) else where
        local = event == "socket.connect" and isinstance(where, (str, bytes))  # a socket of Unix
        if not local and host not in (None, "", *"localhost 127.0.0.1 ::1 0.0.0.0 ::".split(), b"localhost"):
            with open(os.environ["ATTEMPTS"], "a") as file:
                print(event, host, file=file)
            raise OSError(f"{event} {host}: refused by the test")
sys.addaudithook(guard)
"""
WORK = """
import socket, sys
from unetlib.cli import main
from unetlib.phantom.cohort import make_patient
data, image = sys.argv[1:]
main(["check", data, "--workers", "1"])
main(["prepare", data, "prepared", "--image-size", "32", "--workers", "1"])
main(["train", "prepared", "run", "--width", "4", "--depth", "2", "--epochs", "1", "--device", "cpu"])
main(["evaluate", "run", "--device", "cpu"])
main(["predict", "run", image, "--out", "masks", "--device", "cpu"])
make_patient(0, 0)
try:
    socket.getaddrinfo("example.org", 443)
except OSError:
    print("all done, and the guard is awake")
"""


@pytest.fixture
def guarded(tmp_path):
    """An environment in which no Python process reaches another machine, and the file of its attempts."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    attempts = tmp_path / "attempts"
    attempts.touch()
    path = os.pathsep.join([str(tmp_path / "guard"), str(ROOT)])
    return os.environ | {"PYTHONPATH": path, "ATTEMPTS": str(attempts)}, attempts


def uses(source: str) -> list[str]:
    """Return what a module does that none here may do."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        found += [f"imports {name}" for name in names if name.split(".")[0] in NETWORK | EXECUTES]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            unsafe = called in CALLS or words.get("shell", "False") != "False"
            unsafe |= words.get("allow_pickle", "False") != "False"
            unsafe |= called.endswith("torch.load") and words.get("weights_only") != "True"
            found += [f"calls {ast.unparse(node)}"] if unsafe else []
    return found


def test_the_top_level_holds_what_a_stranger_expects_there_and_nothing_else():
    git = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if git.returncode:
        pytest.skip("this is not a clone")
    assert {name.partition("/")[0] for name in git.stdout.split("\n") if name} == TOP


@pytest.mark.parametrize("path", SOURCES, ids=[path.relative_to(ROOT).as_posix() for path in SOURCES])
def test_a_module_executes_nothing_and_knows_no_network(path):
    assert uses(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from urllib.request import urlopen", "import http.client", "eval('1')", "os.system('ls')"),
        *("subprocess.run('ls', shell=True)", "torch.load(p)", "torch.load(p, weights_only=False)"),
        "np.load(p, allow_pickle=True)",
    ],
)
def test_what_no_module_may_do_is_seen(source):
    assert len(uses(source)) == 1


def test_no_command_talks_to_another_machine(cohort, guarded, tmp_path):
    env, attempts = guarded
    image = next(cohort.glob("*/*_flair.nii.gz"))
    words = [sys.executable, "-c", WORK, str(cohort), str(image)]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all done, and the guard is awake\n")
    assert attempts.read_text().splitlines() == ["socket.getaddrinfo example.org"]  # the one that proves the guard
    assert list((tmp_path / "masks").iterdir())


@pytest.fixture
def lab(guarded, tmp_path):
    """JupyterLab as `make lab` starts it, but for the browser and the port: its process and its address with token."""
    env, attempts = guarded
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    words = re.search(r"/(unetlib lab) [$][(]LAB[)]$", makefile, re.MULTILINE)[1].split()
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"JUPYTERLAB_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("SETTINGS", "WORKSPACES")}
    env = {key: value for key, value in env.items() if key != "JUPYTER_TOKEN"} | own
    words = [sys.executable, "-m", *words, "--no-browser", "--port=0", "--allow-root"]
    with open(tmp_path / "server.log", "w") as log:
        process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            yield process, _address(process, tmp_path), attempts
        finally:
            _stop(process, tmp_path)


def listening(process: subprocess.Popen) -> list[Any]:
    """Wait for the server, which tells its address a moment before it listens; return its open sockets."""
    for _ in range(600):
        family = [parent := psutil.Process(process.pid), *parent.children(recursive=True)]
        found = [one for member in family for one in member.net_connections() if one.status == psutil.CONN_LISTEN]
        if found:
            return found
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    return []


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def test_jupyterlab_listens_on_this_machine_only_asks_for_its_token_and_fetches_no_news(lab):
    process, address, attempts = lab
    sockets = listening(process)
    assert sockets
    assert all(ip_address(one.laddr.ip).is_loopback for one in sockets)
    base, token = address.split("lab?token=")
    assert len(token) >= 32
    for path in ("api/contents", "api/kernels", "lab/api/news", "lab/api/update"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(base + path, timeout=30)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{base}{path}?token={'0' * len(token)}", timeout=30)
    answers = {path: get_json(f"{base}{path}?token={token}") for path in ("lab/api/news", "lab/api/update")}
    assert answers == {"lab/api/news": {"news": []}, "lab/api/update": {"notification": None}}
    assert attempts.read_text() == ""
