"""Runs a program: a list of operations, one after the other, without coming back to Python in between.

The threads draw an operation's tasks from its counter. Where the next operation needs the results, they wait until all
tasks drawn so far are done, not for one another: a thread that the system has put aside delays nobody, unless in the
middle of a task.
"""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

from numba import cfunc, njit, types

from statevla.model.kernels.conv_kernel import conv_task
from statevla.model.kernels.matmul_kernel import matmul_task
from statevla.model.kernels.memory import (
    add_and_publish,
    as_address,
    fetch_and_increment,
    load_int,
    load_published,
    pause,
)
from statevla.model.kernels.picture_kernels import group_norm_task, keypoints_task, patches_task
from statevla.model.kernels.row_kernels import copy_task, gate_task, norm_task
from statevla.model.kernels.scan_forward_kernel import scan_task
from statevla.model.kernels.staging import CACHE, HEADER, NEXT_TASK, NUM_TASKS, OPTIONS, claim_scratch

MATMUL, NORM, GATE, COPY, CONV, SCAN, PATCHES, GROUP_NORM, KEYPOINTS = range(9)

# An operation's block begins with its counter and number of tasks; then its kind, and how many tasks of the program
# must be done before the next operation may begin (0: it need not wait).
KIND, WAITS_FOR = 2, 3
# The program's own block: tasks done (in the place of a task counter), number of operations, their blocks' addresses.
DONE, NUM_OPERATIONS, FIRST_OPERATION = NEXT_TASK, HEADER, HEADER + 1


@njit(**OPTIONS)
def _run_task(kind, p, task, scratch):
    if kind == MATMUL:
        matmul_task(p, task, scratch)
    elif kind == NORM:
        norm_task(p, task, scratch)
    elif kind == GATE:
        gate_task(p, task, scratch)
    elif kind == COPY:
        copy_task(p, task, scratch)
    elif kind == CONV:
        conv_task(p, task, scratch)
    elif kind == SCAN:
        scan_task(p, task, scratch)
    elif kind == PATCHES:
        patches_task(p, task, scratch)
    elif kind == GROUP_NORM:
        group_norm_task(p, task, scratch)
    else:
        keypoints_task(p, task, scratch)


@cfunc(types.void(types.voidptr), cache=CACHE)
def run_program(parameters):
    """Run all operations, together with the other threads that have been called with the same block."""
    p = as_address(parameters)
    scratch = claim_scratch(p)
    for i in range(load_int(p, NUM_OPERATIONS)):
        operation = load_int(p, FIRST_OPERATION + i)
        kind, num_tasks, waits_for = (
            load_int(operation, KIND),
            load_int(operation, NUM_TASKS),
            load_int(operation, WAITS_FOR),
        )
        task = fetch_and_increment(operation, NEXT_TASK)
        while task < num_tasks:
            _run_task(kind, operation, task, scratch)
            add_and_publish(p, DONE)
            task = fetch_and_increment(operation, NEXT_TASK)
        if waits_for != 0:
            while load_published(p, DONE) < waits_for:
                pause()
