"""STATEVLA_REPOSITORY is the address of the repository that a release comes from (CONTRIBUTING.md)."""

import os

from setuptools import setup

address = os.environ.get("STATEVLA_REPOSITORY", "").rstrip("/")
setup(project_urls={"Repository": address} if address else {})
