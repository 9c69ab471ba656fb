"""What `from unetlib import ...` gives."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import unetlib

NAMES = [name for name in unetlib.__all__ if name != "__version__"]


LOADED = """
import unetlib
from importlib import import_module
from pkgutil import walk_packages
before = {name: getattr(unetlib, name) for name in unetlib.__all__}
for module in walk_packages(unetlib.__path__, "unetlib."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
print([name for name, value in before.items() if getattr(unetlib, name) is not value])
"""


def printed(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_its_module_defines(name):
    home = import_module(f"unetlib.{unetlib._HOME[name]}")
    assert getattr(unetlib, name) is (home if name in unetlib._MODULES else vars(home)[name])


def test_a_name_stays_what_it_is_when_all_modules_are_loaded():
    """A module that is loaded becomes an attribute of the package, and would hide a function of the same name."""
    assert printed(LOADED) == "[]"


def test_editors_and_mypy_are_told_the_same_names():
    tree = ast.parse(Path(unetlib.__file__).read_text("utf-8"))
    (told,) = (node for node in tree.body if isinstance(node, ast.If))
    names = {alias.name for line in told.body for alias in line.names}
    assert names == set(NAMES) == set(unetlib._HOME)
    assert set(dir(unetlib)) == set(unetlib.__all__)


def test_the_package_itself_loads_nothing_heavy():
    heavy = "torch", "numpy", "matplotlib", "nibabel"
    assert printed(f"import sys, unetlib; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'unetlib' has no attribute 'nothing'"):
        unetlib.nothing  # noqa: B018
