"""Pre- and post-processors: batching and devices. Numbers pass through; the policy normalises by itself."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from lerobot_policy_statevla.configuration_statevla import StateVLAConfig

Statistics = dict[str, dict[str, torch.Tensor]]


def make_statevla_pre_post_processors(
    config: StateVLAConfig, dataset_stats: Statistics | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]], PolicyProcessorPipeline[PolicyAction, PolicyAction]
]:
    """The pipelines before and after the policy.

    The (un)normalisers are there because lerobot-train and lerobot-eval address these steps by name; `config` makes
    them pass everything through.
    """
    inputs, outputs = config.input_features or {}, config.output_features or {}
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device),
        NormalizerProcessorStep(
            features={**inputs, **outputs}, norm_map=config.normalization_mapping, stats=dataset_stats
        ),
    ]
    after = [
        UnnormalizerProcessorStep(features=outputs, norm_map=config.normalization_mapping, stats=dataset_stats),
        DeviceProcessorStep(device="cpu"),
    ]
    return (
        PolicyProcessorPipeline[dict[str, Any], dict[str, Any]](steps=before, name=POLICY_PREPROCESSOR_DEFAULT_NAME),
        PolicyProcessorPipeline[PolicyAction, PolicyAction](
            steps=after,
            name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )
