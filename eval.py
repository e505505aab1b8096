"""Evaluate a checkpoint on held-out episodes: `python eval.py --checkpoint RUN/checkpoint_best.pt` (see --help)."""

from statevla.commands.table import run_script

if __name__ == "__main__":
    run_script("eval")
