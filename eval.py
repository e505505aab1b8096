"""Evaluate a checkpoint on held-out episodes: `python eval.py --checkpoint RUN/checkpoint_best.pt` (see --help)."""

from statevla.commands.eval import main

if __name__ == "__main__":
    main()
