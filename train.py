"""Train StateVLA: `python train.py --config conf/config.yaml --phase 1` (see --help)."""

from statevla.commands.table import run_script

if __name__ == "__main__":
    run_script("train")
