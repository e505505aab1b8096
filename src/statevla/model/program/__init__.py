"""Acting on a CPU: the model's two halves as programs, each one call, made once for the sizes of a query."""

from statevla.model.program.acting import ActingPrograms
from statevla.model.program.program import multiplies
from statevla.model.program.stack import StackProgram

__all__ = ["ActingPrograms", "StackProgram", "multiplies"]
