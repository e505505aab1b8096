"""Presets and trained policies stand at the top of the source tree, where people look, and travel in the package.

They are copied here: symbolic links would need no code, but break on Windows and where the repository is browsed.
"""

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


setup(cmdclass={"build_py": BuildWithBundled})
