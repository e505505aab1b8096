"""What pyproject.toml cannot say.

Presets and trained policies stand at the top of the source tree, where people look, and travel in the package. They are
copied here: symbolic links would need no code, but break on Windows and where the repository is browsed.

Links and pictures of the README are relative, which a package index does not follow. STATEVLA_REPOSITORY is the address
of the repository that a release comes from (CONTRIBUTING.md): with it they are absolute, and the package says it.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithBundled(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the source tree itself is used
            return
        for folder in ("conf", "models"):
            target = Path(self.build_lib, "statevla", "bundled", folder)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target)
            # Permissions of the author's files may keep everyone else from reading them.
            for file in target.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)


def readme(address: str) -> str:
    """The README, its links and pictures those of `address`; as it is without one."""
    text = Path("README.md").read_text(encoding="utf-8")
    if not address:
        return text
    text = re.sub(r"(!\[[^\]]*\])\((?!https?:)([^)]+)\)", rf"\1({address}/raw/HEAD/\2)", text)
    return re.sub(r"(?<!!)(\[[^\]]*\])\((?!https?:|#)([^)]+)\)", rf"\1({address}/blob/HEAD/\2)", text)


def urls(address: str) -> dict[str, str]:
    pages = {"Documentation": "tree/HEAD/docs", "Changelog": "blob/HEAD/CHANGELOG.md", "Issues": "issues"}
    return {"Repository": address, **{name: f"{address}/{page}" for name, page in pages.items()}} if address else {}


address = os.environ.get("STATEVLA_REPOSITORY", "").rstrip("/")
setup(
    cmdclass={"build_py": BuildWithBundled},
    long_description=readme(address),
    long_description_content_type="text/markdown",
    project_urls=urls(address),
)
