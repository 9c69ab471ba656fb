"""What a maintainer looks at before a release: known vulnerabilities, licences, secrets. Run by `make audit`.

`python -m tests.audit TOOLS`: TOOLS is the folder of the commands pip-audit and detect-secrets. Ends with status 1 when
something was found, and also when something could not be looked at: no answer is not a good answer.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Licences that ask for no more than their notice, or (MPL) that changes to their own files be shown.
FINE = r"MIT(-0|-CMU)?|0?BSD|Apache|PSF|Python Software Foundation|ISC|MPL|Mozilla Public|Zlib|CC0|BSL-1\.0"
IMAGE = r'"image/(png|gif|jpeg|svg)|data:image'  # pictures in notebooks look like long random words


def vulnerabilities(tools: Path) -> list[str]:
    """Ask the advisories of PyPI about every version in constraints.txt."""
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    words = [tools / "pip-audit", "-r", "constraints.txt", "--no-deps", "--disable-pip", "-f", "json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        return [f"NOT CHECKED for vulnerabilities, for pip-audit ended with: {reason}"]
    found = [
        f"{one['name']} {one['version']}: {', '.join(vuln['id'] for vuln in one['vulns'])}"
        for one in packages
        if one.get("vulns")
    ]
    checked = sum("vulns" in one for one in packages)
    if checked < len(pins):  # pip-audit itself says "No known vulnerabilities found" then, and ends with 0
        found.append(
            f"NOT CHECKED for vulnerabilities: {len(pins) - checked} of {len(pins)} packages, of which no advisory "
            "could be had. Run this where pypi.org can be reached."
        )
    return found


def licences() -> list[str]:
    """Name every installed package whose metadata tell no licence, or one that is not in the list above."""
    found = []
    for package in importlib.metadata.distributions():
        meta = package.metadata
        text = meta.get("License-Expression") or ""
        trove = [line.rpartition(" :: ")[2] for line in meta.get_all("Classifier", []) if line.startswith("License ::")]
        parts = re.split(" AND | OR ", text) if text else trove or [(meta.get("License") or "").partition("\n")[0]]
        if not all(re.match(rf"({FINE})\b", part.strip("()"), re.IGNORECASE) for part in parts):
            found.append(f"{package.name} {package.version}: its licence is {', '.join(parts)[:80] or 'not told'}")
    return sorted(found)


def secrets(tools: Path) -> list[str]:
    """Name every line of a tracked file that looks like a key, a token or a password."""
    words = [tools / "detect-secrets", "scan", "--no-verify", "--exclude-lines", IMAGE]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return [f"NOT CHECKED for secrets, for detect-secrets ended with: {done.stderr.strip()[-200:]}"]
    results = json.loads(done.stdout)["results"]
    return [f"{one['filename']}:{one['line_number']}: {one['type']}" for file in results.values() for one in file]


def main() -> int:
    """Look, print, and return the exit status."""
    tools = Path(sys.argv[1]).absolute()
    checks = {"known vulnerabilities": vulnerabilities(tools), "licences": licences(), "secrets": secrets(tools)}
    for name, found in checks.items():
        print(f"{name}: {len(found) or 'nothing'} found", *found, sep="\n  ")
    return int(any(checks.values()))


if __name__ == "__main__":
    sys.exit(main())
