"""One policy of `bench_peers.py`, in a process of its own; `--child` is what to do, as JSON.

Runs under two Pythons, ours and one with LeRobot: what belongs to a policy is imported only once it is asked for.
`make` writes the policy with random weights into a folder; `measure` loads it from there as its users do, and times
queries: from uint8 pictures and the robot's state to a chunk of actions in the robot's units.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from quiet import QUIET, Moment, wait_until_quiet

INSTRUCTION = "pick up the alphabet soup and place it in the basket"
CAMERAS = ("agentview", "eye_in_hand")
STATE_DIM, ACTION_DIM = 9, 7
LANGUAGE_TOKENS = 48
"""Of SmolVLA, padded to that by its published configuration."""
PACKAGES = ("torch", "torchvision", "transformers", "lerobot", "statevla", "numpy")


class Loaded(NamedTuple):
    """A policy that is ready: its query, its numbers of parameters and of actions executed per query by default."""

    query: Callable[[], Any]
    parameters: int
    actions_per_query: int


# StateVLA -------------------------------------------------------------------------------------------------------------


def make_statevla(folder: Path, case: dict[str, Any]) -> None:
    import numpy as np

    from statevla.checkpoints.checkpoint import Contents, DataInfo, TrainingState, save_checkpoint
    from statevla.config import load_config
    from statevla.model.language import build_language_encoder
    from statevla.model.statevla_model import StateVLA
    from statevla.transforms import FieldStatistics, Statistics

    model = StateVLA(load_config(Path(__file__).parents[1] / "conf" / case["config"]))
    config, robot, rng = model.config, model.robot, np.random.default_rng(0)
    statistics = Statistics(
        FieldStatistics.of(rng.uniform(-1, 1, (100, robot.action_dim))),
        FieldStatistics.of(rng.normal(size=(100, robot.state_dim))),
    )
    language = build_language_encoder(config.language, config.model.language_dim).info
    data = DataInfo("", 0.9, 0, frame_size=config.model.image_size)
    contents = Contents(model.state_dict(), config, robot, statistics, language, data, {"phase": "2"})
    save_checkpoint(folder, contents, TrainingState({}, {}), is_best=True)
    for precision in ("bf16", "fp32"):  # the first query on a machine compiles kernels, which stay on its disk
        load_statevla(folder, {**case, "precision": precision}).query()


def load_statevla(folder: Path, case: dict[str, Any]) -> Loaded:
    from statevla.acting.policy import load_policy
    from statevla.types import Observation

    policy = load_policy(folder / "best", precision=case["precision"])
    state = policy.robot.named_state(policy.transform.statistics.robot_state.mean, "statistics")
    observation = Observation(pictures(policy.config.model.cameras, case), state, INSTRUCTION)
    parameters = sum(each.numel() for each in policy.model.parameters())
    return Loaded(lambda: policy.act_chunk(observation).actions, parameters, policy.execute_steps)


# LeRobot --------------------------------------------------------------------------------------------------------------


def allow_torchvision() -> None:
    """Let PyPI's torchvision, built for CUDA, be imported beside a CPU build of PyTorch.

    Its compiled operators do not load there. No policy here calls them, but on import it describes two.
    """
    import torch

    if torch.version.cuda is None and "+cpu" not in metadata.version("torchvision"):
        for operator in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)


def lerobot_features(case: dict[str, Any]) -> dict[str, Any]:
    from lerobot.configs.types import FeatureType, PolicyFeature

    shape = (3, case["height"], case["width"])
    inputs = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, shape) for name in CAMERAS}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (STATE_DIM,))
    return {
        "input_features": inputs,
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
        "device": "cpu",
    }


def make_act(folder: Path, case: dict[str, Any]) -> None:
    from lerobot.policies.act.modeling_act import ACTConfig, ACTPolicy

    ACTPolicy(ACTConfig(pretrained_backbone_weights=None, **lerobot_features(case))).save_pretrained(folder)


def make_smolvla(folder: Path, case: dict[str, Any]) -> None:
    """As `lerobot/smolvla_base` is configured, on a vision-language model of random weights beside it."""
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAConfig, SmolVLAPolicy

    make_smolvlm(folder / "vlm")
    config = SmolVLAConfig(
        vlm_model_name=str(folder / "vlm"),
        load_vlm_weights=True,
        num_expert_layers=0,
        prefix_length=0,
        pad_language_to="max_length",
        **lerobot_features(case),
    )
    SmolVLAPolicy(config).save_pretrained(folder)


def make_smolvlm(folder: Path) -> None:
    """The shape of `HuggingFaceTB/SmolVLM2-500M-Video-Instruct` (507 M parameters), and a tokenizer of one word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    text = {
        "model_type": "llama",
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,  # SmolVLA takes the first 16
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "vocab_size": 49280,
        "max_position_embeddings": 8192,
        "rope_theta": 100000,
        "tie_word_embeddings": False,
        "pad_token_id": 2,
        "dtype": "bfloat16",
    }
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    }
    config = SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=4, image_token_id=49190, tie_word_embeddings=False
    )
    SmolVLMForConditionalGeneration(config).bfloat16().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", extra_special_tokens=special
    )
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor()).save_pretrained(folder)


def load_act(folder: Path, case: dict[str, Any]) -> Loaded:
    import torch
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.act.processor_act import make_act_pre_post_processors

    policy = ACTPolicy.from_pretrained(folder)
    if case["precision"] == "bf16":  # LeRobot has no such way on a CPU; this was the fastest of those tried
        policy.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    processors = make_act_pre_post_processors(policy.config, lerobot_statistics())
    return lerobot_loaded(policy, processors, case, autocast=case["precision"] == "bf16")


def load_smolvla(folder: Path, case: dict[str, Any]) -> Loaded:
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

    policy = SmolVLAPolicy.from_pretrained(folder)  # bf16 but for the projections of states and actions
    if case["precision"] == "fp32":
        policy.float()
    processors = make_smolvla_pre_post_processors(policy.config, lerobot_statistics())
    return lerobot_loaded(policy, processors, case, autocast=False)


def lerobot_statistics() -> dict[str, Any]:
    import torch

    dims: dict[str, tuple[int, ...]] = {"observation.state": (STATE_DIM,), "action": (ACTION_DIM,)}
    dims |= {f"observation.images.{name}": (3, 1, 1) for name in CAMERAS}
    return {name: {"mean": torch.full(dim, 0.5), "std": torch.full(dim, 0.25)} for name, dim in dims.items()}


def lerobot_loaded(policy: Any, processors: tuple[Any, Any], case: dict[str, Any], autocast: bool) -> Loaded:
    """A query as `lerobot.utils.control_utils.predict_action` makes it, but for the whole chunk."""
    import numpy as np
    import torch
    from lerobot.policies.utils import prepare_observation_for_inference

    raw = {f"observation.images.{name}": picture for name, picture in pictures(CAMERAS, case).items()}
    raw["observation.state"] = np.zeros(STATE_DIM, np.float32)
    before, after = processors

    def query() -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            batch = before(prepare_observation_for_inference(dict(raw), torch.device("cpu"), INSTRUCTION))
            return after(policy.predict_action_chunk(batch)).float().numpy()

    parameters = sum(each.numel() for each in policy.parameters())
    return Loaded(query, parameters, policy.config.n_action_steps)


# Both -----------------------------------------------------------------------------------------------------------------

MAKE = {"statevla": make_statevla, "act": make_act, "smolvla": make_smolvla}
LOAD = {"statevla": load_statevla, "act": load_act, "smolvla": load_smolvla}


def pictures(cameras: Any, case: dict[str, Any]) -> dict[str, Any]:
    """The same noise for every camera, uint8 `[H, W, 3]`."""
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, (case["height"], case["width"], 3), np.uint8)
    return {name: noise.copy() for name in cameras}


def measure(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Load, answer once, then time bursts of queries, with every number of threads in turn.

    Each number gets `seconds` in quiet moments, or what could be had in `patience_s`.
    """
    import numpy as np
    import torch

    threads = case["threads"]
    torch.set_num_threads(max(threads))
    loaded = LOAD[case["policy"]](folder, case)
    chunk = np.asarray(loaded.query())
    begin = Moment(*case["begin"])
    start_up = {"wall_s": [time.monotonic() - begin.clock], "others": begin.others()}
    if chunk.shape[-1] != ACTION_DIM or not np.isfinite(chunk).all():
        raise RuntimeError(f"{case['name']}: expected finite actions [..., {ACTION_DIM}], got {chunk.shape}")
    loaded.query()
    gc.collect()
    gc.disable()
    bursts: dict[int, list[dict[str, Any]]] = {number: [] for number in threads}
    deadline = time.monotonic() + case["patience_s"]
    while wanting := [number for number in threads if quiet_seconds(bursts[number]) < case["seconds"]]:
        if time.monotonic() > deadline and all(bursts.values()):
            break
        for number in wanting:
            torch.set_num_threads(number)
            wait_until_quiet(deadline)
            bursts[number].append(burst(loaded.query))
    return {
        "start_up": start_up,
        "bursts": bursts,
        "parameters": loaded.parameters,
        "chunk": list(chunk.shape),
        "actions_per_query": loaded.actions_per_query,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": versions(),
    }


def burst(query: Callable[[], Any], seconds: float = 0.5) -> dict[str, Any]:
    """Queries back to back: wall seconds of each, processor seconds of all, the share that others used meanwhile.

    Where several fit in, an untimed one goes first.
    """
    wall_s: list[float] = []
    begin = Moment.now()
    query()
    if (first := time.monotonic() - begin.clock) > seconds:
        wall_s.append(first)
    else:
        begin = Moment.now()
    while sum(wall_s) < seconds:
        start = time.perf_counter()
        query()
        wall_s.append(time.perf_counter() - start)
    return {"wall_s": wall_s, "cpu_s": Moment.now().own_s - begin.own_s, "others": begin.others()}


def quiet_seconds(bursts: list[dict[str, Any]]) -> float:
    return sum(sum(each["wall_s"]) for each in bursts if each["others"] <= QUIET)


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", required=True)
    case = json.loads(parser.parse_args().child)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if case["policy"] != "statevla":
        allow_torchvision()
    folder = Path(case["folder"])
    if case["task"] == "make":
        import torch

        torch.manual_seed(case["seed"])
        with contextlib.redirect_stdout(sys.stderr):
            MAKE[case["policy"]](folder, case)
        print(json.dumps(None))
        return
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(folder, case)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
