"""Success in simulation: `python run_libero_eval.py --checkpoint … --task_suite libero_object --num_trials 50`."""

from statevla.commands.table import run_script

if __name__ == "__main__":
    run_script("rollout")
