"""Success in simulation: `python run_libero_eval.py --checkpoint … --task_suite libero_object --num_trials 50`."""

from statevla.commands.rollout import main

if __name__ == "__main__":
    main()
