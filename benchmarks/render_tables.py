"""Write the measured tables of README.md and of the pages in docs/ from the raw results.

    python benchmarks/render_tables.py [--check]

Numbers stand in these pages only through this script. `--check` writes nothing and fails where a page is out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from deployment_tables import alarm_table, peers_table, server_table
from experiments_page import experiments_page
from loader_tables import cache_table
from performance_tables import performance_tables
from scaling_tables import scaling_tables
from statevla.commands.entry import run_command

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- measured: start -->", "<!-- measured: end -->"

SUITE_SIZES = {"libero_90": 90}  # the other suites have ten tasks each
SUPPORTED_EPISODES = 5

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
SUITES_POLICY = "suites-more-s0"
# Success on the four suites as their papers report it; all were trained on LIBERO's own demonstrations.
PUBLISHED = (
    ("LeWM latents, frozen, and a flow head", "15 M", ("62.4", "93.9", "53.4", "44.7", "63.6")),
    ("TC-LeWM latents, frozen, and a flow head (arXiv 2607.26924)", "15 M", ("86.0", "97.0", "88.4", "63.6", "83.8")),
    ("Diffusion Policy, from scratch", "< 100 M", ("78.3", "92.5", "68.3", "50.5", "72.4")),
    ("SmolVLA", "450 M", ("90", "96", "92", "71", "87.3")),
    ("pi0", "3.2 B", ("96.8", "98.8", "95.8", "85.2", "94.2")),
    ("pi0.5", "3.4 B", ("98.8", "98.2", "98.0", "92.4", "96.9")),
    ("MINERVA, end to end, no language (arXiv 2609.03715)", "0.54 M", ("94.4", "99.6", "96.4", "89.8", "95.1")),
    ("MINERVA", "9.7 M", ("98.4", "99.0", "98.4", "94.0", "97.5")),
    ("VLA-JEPA", "> 2 B", ("96.2", "99.6", "97.2", "95.8", "97.2")),
    ("TurboVLA", "0.2 B", ("99.2", "99.8", "97.4", "94.2", "97.7")),
)

# metric of summary.json → (what it is, unit)
METRICS = {
    "libero_object_success": (
        "success on `libero_object`, 10 tasks x 50 official initial states, one policy by `conf/compact.yaml` "
        "(docs/experiments.md)",
        "%",
    ),
    "libero_object_success_episodes_per_h": ("simulated episodes of that evaluation", "an hour"),
    "libero_object_wide_success": (
        "the same policy with the objects all over the table, 10 tasks x 50 fixed states",
        "%",
    ),
    "so101_lift_success": (
        "another robot: an SO-101 lifts a cube by absolute joint targets, one camera, 100 places never trained on, a "
        "shorter `conf/compact.yaml`",
        "%",
    ),
    "libero_spatial_success": (
        "success on `libero_spatial`, 10 tasks x 50 official initial states, another policy by the same "
        "`conf/compact.yaml`",
        "%",
    ),
    "sample_actions_ms_full": ("one chunk, full model (14.9 M), two 224 px cameras, 4 Euler steps, batch 1", "ms"),
    "sample_actions_ms_compact": ("the same, compact preset, two 128 px cameras", "ms"),
    "train_samples_per_s_full": ("phase-1 training step of the full model, bf16", "samples/s"),
    "train_windows_per_s_compact": ("phase-1 step of the compact preset, bf16, windows of 3 frames", "windows/s"),
    "train_chunks_per_s_compact": ("phase-2 training step of the compact preset, bf16", "chunks/s"),
    "allocator_train_speedup_compact": ("phase-1 step, compact, with freed memory kept over given back", "x"),
    "encoder_train_speedup_vs_transformer_compiled": ("encoder training vs a compiled Transformer", "x"),
    "scan_train_speedup_vs_mambapy_L395": ("selective scan, forward + backward, vs mambapy (batch 8)", "x"),
    "scan_train_speedup_vs_mambapy_L395_without_warm_calls": ("the same without warm calls", "x"),
    "scan_train_speedup_vs_hf_L395": ("selective scan, forward + backward, vs Hugging Face's CPU loop (batch 1)", "x"),
    "scan_train_speedup_vs_hf_L395_without_warm_calls": ("the same without warm calls", "x"),
    "scan_train_memory_ratio_vs_mambapy_L395": ("selective scan, peak memory, mambapy over ours", "x"),
    "scan_avx2_slowdown_B1": ("selective scan, forward + backward, time on AVX2 over AVX-512 (batch 1)", "x"),
    "scan_avx2_slowdown_B8": ("the same at batch 8", "x"),
    "scan_avx2_slowdown_B1_emerald_rapids": ("the same on Emerald Rapids, batch 1", "x"),
    "scan_avx2_slowdown_B8_emerald_rapids": ("the same on Emerald Rapids, batch 8", "x"),
    "scan_train_speedup_vs_mambapy_L395_zen3": ("on a host that has AVX2 alone (Zen 3): vs mambapy (batch 8)", "x"),
    "scan_train_speedup_vs_mambapy_L395_without_warm_calls_zen3": ("the same without warm calls", "x"),
    "scan_train_speedup_vs_hf_L395_zen3": ("there, vs Hugging Face's CPU loop (batch 1)", "x"),
    "scan_train_speedup_vs_hf_L395_without_warm_calls_zen3": ("the same without warm calls", "x"),
    "scan_train_memory_ratio_vs_mambapy_L395_zen3": ("there, peak memory, mambapy over ours", "x"),
    "phase2_latents_ratio": ("phase 2 on stored states over encoding every batch, full model", "x"),
    "phase2_latents_samples_per_s": ("phase 2 on stored states, full model", "samples/s"),
}


def main() -> int:
    summary = load("summary")
    pages = {
        ROOT / "README.md": between((ROOT / "README.md").read_text(), headline_table(summary)),
        ROOT / "docs" / "alarm.md": between((ROOT / "docs" / "alarm.md").read_text(), alarm_table(load("alarm"))),
        ROOT / "docs" / "deploying.md": between(
            (ROOT / "docs" / "deploying.md").read_text(), server_table(load("server"))
        ),
        ROOT / "docs" / "own-data.md": between(
            (ROOT / "docs" / "own-data.md").read_text(), cache_table(load("loader"))
        ),
        ROOT / "docs" / "performance.md": between(
            (ROOT / "docs" / "performance.md").read_text(),
            performance_tables(*(load(f"model_{part}") for part in ("acting", "training", "neighbours"))),
        ),
        ROOT / "docs" / "scaling.md": between(
            (ROOT / "docs" / "scaling.md").read_text(),
            scaling_tables(*(load(name) for name in ("collect", "loader", "model_training", "processes"))),
        ),
        ROOT / "docs" / "results.md": results_page(summary),
        ROOT / "docs" / "expert.md": expert_page(load("expert"), load("expert_settings")),
        ROOT / "docs" / "experiments.md": experiments_page(RESULTS / "experiments"),
    }
    stale = [path for path, text in pages.items() if not path.is_file() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} is out of date; run python benchmarks/render_tables.py", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages[path])
    return 0


def load(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def between(page: str, text: str) -> str:
    """`page` with what stands between the markers replaced."""
    head, _, rest = page.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n{text}\n{END}{tail}"


def headline_table(summary: dict[str, Any]) -> str:
    """The few figures of the front page; docs/results.md has all of them."""
    compact, full = (summary[f"sample_actions_ms_{size}"] for size in ("compact", "full"))
    cold, warm = (summary[f"scan_train_speedup_vs_mambapy_L395{end}"] for end in ("_without_warm_calls", ""))
    rows = {
        "`libero_object`, 10 tasks x 50 official initial states": solved("object-keypoints-s0", "official"),
        "the same policy with the objects all over the table": solved("object-keypoints-s0", "wide"),
        "another robot: an SO-101 lifts a cube, at places never trained on": solved("so101-lift-s0", "drawn"),
        "one chunk of actions on AMD Zen 4: compact preset, full model": f"{compact:.1f} ms, {full:.1f} ms",
        "training through the selective scan, over mambapy's, on AMD Zen 5": f"{cold:.0f} to {warm:.0f} times as fast",
    }
    return "\n".join(["| measured | value |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows.items())])


def solved(name: str, init_states: str) -> str:
    """Episodes that an experiment's policy solved under its own instructions, of those it was given."""
    asked = {"init_states": init_states, "instructions": "own"}
    total = next(
        rollout["total"] for rollout in experiment(name)["simulated"] if asked.items() <= rollout["settings"].items()
    )
    return f"{total['successes']} of {total['episodes']}"


def metrics_table(summary: dict[str, Any]) -> str:
    rows = [
        f"| {what} | {summary[key] * (100 if unit == '%' else 1):g} {unit} |"
        for key, (what, unit) in METRICS.items()
        if key in summary
    ]
    if loader := load("loader"):
        raw, size_gb = [run for run in loader["runs"] if run["codec"] == "raw"], loader["codecs"]["raw"]["cache_gb"]
        best = max(run["frames_per_s"] for run in raw)
        rows.append(f"| loader alone, two 128 px cameras, augmented | {best:,.0f} frames/s |")
        rows.append(
            f"| its resident memory on a {size_gb:.3g} GB cache | {max(run['rss_peak_mb'] for run in raw)} MB |"
        )
    for suite, tasks in load("expert").items():
        successes, episodes = (sum(task[key] for task in tasks.values()) for key in ("successes", "episodes"))
        rows.append(f"| scripted expert, `{suite}`, {len(tasks)} tasks | {successes} / {episodes} episodes |")
    return "\n".join(["| measured | value |", "|---|---|", *rows])


def experiment(name: str) -> dict[str, Any]:
    return load(f"experiments/{name}")


def comparison_table() -> str:
    """Success on `libero_object` beside published systems."""
    rollouts = experiment("object-keypoints-s0")["simulated"]
    total = next(rollout["total"] for rollout in rollouts if rollout["settings"]["init_states"] == "official")
    low, high = (100 * bound for bound in total["interval_95"])
    ours = f"{100 * total['success_rate']:.1f} ({low:.1f} to {high:.1f})"
    how = "two phases, frozen latents, phase 1 with a cloning term; scripted demonstrations and reaches"
    rows = [f"| **StateVLA compact** ({how}) | **3.9 M** | **{ours}** |"]
    rows += [f"| {system} | {size} | {success[SUITES.index('libero_object')]} |" for system, size, success in PUBLISHED]
    return "\n".join(["| system | parameters | success on `libero_object`, % |", "|---|---|---|", *rows])


def suites_table(name: str) -> str:
    """One policy on the four suites beside published systems."""
    totals = {rollout["settings"]["task_suite"]: rollout["total"] for rollout in experiment(name)["simulated"]}
    cells = []
    for suite in SUITES:
        low, high = (100 * bound for bound in totals[suite]["interval_95"])
        cells.append(f"{100 * totals[suite]['success_rate']:.1f} ({low:.1f} to {high:.1f})")
    rows = [f"| **StateVLA compact, one policy** | **3.9 M** | {' | '.join(cells)} | **{suites_average(name):.1f}** |"]
    rows += [f"| {system} | {size} | {' | '.join(success)} |" for system, size, success in PUBLISHED]
    head = "| system | parameters | Spatial | Object | Goal | Long | average |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def suites_average(name: str) -> float:
    """Mean success of a policy over the four suites, in per cent."""
    rates = [rollout["total"]["success_rate"] for rollout in experiment(name)["simulated"]]
    return 100 * sum(rates) / len(rates)


def weak_tasks(name: str) -> list[str]:
    """A line for every task that an experiment's policy solves in fewer than half of the trials."""
    tasks = [task for rollout in experiment(name)["simulated"] for task in rollout["tasks"]]
    weak = [task for task in tasks if 2 * task["successes"] < task["episodes"]]
    return [f"- {task['name'].replace('_', ' ')}: {task['successes']} / {task['episodes']}" for task in weak]


def results_page(summary: dict[str, Any]) -> str:
    environment = load("model_training").get("environment", {})
    machine, versions = environment.get("machine", {}), environment.get("versions", {})
    where = f"{machine.get('cpu', '')}, {machine.get('num_threads', '')} threads, PyTorch {versions.get('torch', '')}"
    rest = {key: value for key, value in summary.items() if key not in METRICS}
    lines = [
        "# Results",
        "",
        f"Measured on {where}. `make bench` repeats what needs neither a checkpoint nor the simulator; raw samples,",
        "commands, seeds and versions are in `benchmarks/results/`. What is compared ran in turn, in one process.",
        "",
        "How to read the times: fast cases get untimed calls of their own before each timed one (`burst_s` in",
        "`benchmarks/harness.py`), as a model that runs alone finds its memory mapped and its weights cached. The",
        "ratios without warm calls time every call right after those of the other implementations. Acting and training",
        "are timed in processes of their own, which take turns; [Speed](performance.md) has more of them.",
        "",
        "Four kinds of host were at hand, two cores of each: AMD EPYC Zen 5 (family 26, model 2), Zen 4 (family 25,",
        "model 17), on which PyTorch's own operators take 1.6 times as long and AVX-512 has half the width, and an",
        "Intel Xeon (Emerald Rapids, AMX hidden), which acts faster in float32 than in bf16; and Zen 3 (family 25,",
        "model 1), which has AVX2 alone and computes in float32. Files and metrics with a",
        "host's name are of the same commands, run there. Acting and training are from Zen 4; the scan and phase 2",
        "on stored states from Zen 5, a shared machine whose times differ from hour to hour, before acting and the",
        "stem had kernels of their own. The encoder's comparison is from a host whose model was not recorded; the",
        "allocator's and the server's are from Zen 4.",
        "",
        metrics_table(summary),
        "",
        "## Beside published systems",
        "",
        comparison_table(),
        "",
        "The protocol is theirs (ten tasks, the 50 official initial states each), the demonstrations are not: ours",
        "come from the scripted expert, which moves more regularly than a person, and the official initial states",
        "differ by a centimetre at most, so that this suite can be memorised. One seed. What the policy does where it",
        "cannot memorise is in the [experiments](experiments.md).",
        "",
        "## One policy for the four suites",
        "",
        suites_table(SUITES_POLICY),
        "",
        f"Trained for {experiment(SUITES_POLICY)['training_s'] / 60:.0f} minutes on one core of a Zen 4, from the "
        "weights of the policy above, on a quarter of the",
        "demonstrations that the others have (498: 6 to 30 a task, and 780 reaches).",
        "Simulated on the first 15 of the 50 official states of each task. Long is `libero_10` without three tasks",
        "that the expert does not demonstrate reliably; the others' figures include them. From 316 demonstrations and",
        f"half as many windows the average was {suites_average('suites-tuned-s0'):.1f} (`suites-tuned-s0` of the",
        "[experiments](experiments.md)); from random weights, with 50 demonstrations a task and three times as many",
        "windows, `libero_spatial` alone was simulated (`suites-s0`). Solved in fewer than half of the trials:",
        "",
        *weak_tasks(SUITES_POLICY),
        "",
        "## Beside LeRobot's policies on a CPU",
        "",
        peers_table(load("peers")),
        "",
        "All of them have random weights, so that this is about time and memory alone and says nothing about how well",
        "anything acts: what SmolVLA knows from its pretraining is what its time buys. A query goes from two cameras'",
        "uint8 pictures, a state and an instruction to a chunk of actions in the robot's units, batch 1, by each",
        "library's own code; a start-up, from the start of Python to the first chunk, with the weights in a file.",
        "StateVLA embeds an instruction once, by a text encoder that its start-up loads, and remembers it; SmolVLA",
        "reads it in every query; ACT reads none. StateVLA's presets get their 128 and 224 px, ACT those and its",
        "usual 480 x 640. SmolVLA is configured as `smolvla_base` is: pictures scaled to 512 px, 48 tokens of",
        "language (a stand-in splits the words), ten flow steps. Its bf16 is how LeRobot loads it. For ACT, LeRobot",
        "has float32 alone on a CPU; its bf16 here is the fastest that was tried: converted weights, channels last,",
        "autocast. Parameters are those of the file: StateVLA's world model, ACT's VAE encoder and SmolVLA's language",
        "head are among them and do not act. The control rate is the default number of actions executed per query",
        "over the time of the fastest query in its row: as fast as queries would keep up, not as often as anything",
        "looks (ACT executes its 100 actions blind). Nothing of LeRobot's went through `torch.compile` or was",
        "quantised or exported; StateVLA compiles its kernels at its first query on a machine, which no figure here",
        "counts. On a GPU it would be another table.",
    ]
    if rest:
        lines += ["", "## All other metrics", "", "| metric | value |", "|---|---|"]
        lines += [f"| `{key}` | {value:g} |" for key, value in rest.items()]
    return "\n".join(lines) + "\n"


def expert_page(results: dict[str, Any], settings: dict[str, Any]) -> str:
    lines = [
        "# Scripted expert: tasks and success",
        "",
        "Success of the expert that `statevla collect` uses, from the official initial states (physics only),",
        f"execution noise {settings.get('noise', '?')}, seed {settings.get('seed', '?')}. Repeat with "
        "`python benchmarks/measure_expert.py --suite SUITE`.",
        "",
        "Episodes start from the first initial states of each task, in order, and every one that was run counts. An",
        "episode succeeds if the goal holds at its end. Tasks at 80 % or more of at least 5 episodes count as",
        "supported; where episodes failed, the last column says which part of the goal did not hold, and how often.",
        "Rates from few episodes are rough: 5 of 5 says, with 95 % confidence, that the rate is above 54 %, and 2 of 2",
        "only 22 %.",
        "",
        "| suite | tasks measured | supported | 80 % or more of fewer | episodes a task | successes / episodes |",
        "|---|---|---|---|---|---|",
    ]
    for suite, tasks in results.items():
        reliable = [task["episodes"] for task in tasks.values() if task["successes"] >= 0.8 * task["episodes"]]
        supported = sum(episodes >= SUPPORTED_EPISODES for episodes in reliable)
        successes, episodes = (sum(task[key] for task in tasks.values()) for key in ("successes", "episodes"))
        counts = sorted({task["episodes"] for task in tasks.values()})
        span = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        measured = f"{len(tasks)} of {SUITE_SIZES.get(suite, 10)}"
        fewer = len(reliable) - supported
        lines.append(f"| `{suite}` | {measured} | {supported} | {fewer} | {span} | {successes} / {episodes} |")
    for suite, tasks in results.items():
        lines += ["", f"## {suite}", ""]
        lines += ["| task | successes / episodes | mean steps | not reached |", "|---|---|---|---|"]
        for name, task in tasks.items():
            unmet = ", ".join(f"`{goal}` ({count})" for goal, count in task.get("unmet", {}).items())
            rate = f"{task['successes']} / {task['episodes']}"
            lines.append(f"| {name.replace('_', ' ')} | {rate} | {task.get('mean_steps', '')} | {unmet} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
