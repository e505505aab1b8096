"""Train StateVLA: `python train.py --config conf/config.yaml --phase 1` (see --help)."""

from statevla.commands.train import main

if __name__ == "__main__":
    main()
