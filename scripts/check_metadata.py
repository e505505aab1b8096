"""What a package index shows and type checkers look for is in each wheel: licence, py.typed, addresses that work there.

python scripts/check_metadata.py <address of the repository> <wheel> ...
"""

from __future__ import annotations

import re
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path


def problems(wheel: Path, address: str) -> list[str]:
    """One line each; none for a wheel that is complete."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = message_from_bytes(archive.read(next(name for name in names if name.endswith("/METADATA"))))
    found = [
        f"no {what}"
        for what, pattern in (("licence", r"/licenses/LICENSE$"), ("py.typed", r"/py\.typed$"))
        if not any(re.search(pattern, name) for name in names)
    ]
    addresses = [entry.partition(", ")[2] for entry in metadata.get_all("Project-URL", [])]
    if not any(each.startswith(address) for each in addresses):
        found.append(f"no project URL at {address}, it has {', '.join(addresses) or 'none'}")
    links = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    found += [
        f"a link that leads nowhere on a package index: {link}" for link in links if not re.match("https?:|#", link)
    ]
    return found


def main() -> int:
    address, wheels = sys.argv[1], [Path(name) for name in sys.argv[2:]]
    lines = [f"{wheel.name}: {problem}" for wheel in wheels for problem in problems(wheel, address)]
    print("\n".join(lines), end="\n" * bool(lines), file=sys.stderr)
    return int(bool(lines) or not wheels)


if __name__ == "__main__":
    sys.exit(main())
