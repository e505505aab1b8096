"""The whole configuration: one validated tree, read from YAML with dotted overrides.

Unknown keys are errors that name the nearest key; every key is read by something. The defaults are the spec's
configuration (`conf/config.yaml` spells them out); presets in `conf/` change them.
"""

from statevla.config.data import AugmentationConfig, DataConfig, LanguageConfig, SourceConfig
from statevla.config.loading import all_keys, config_from_dict, load_config, takes_text
from statevla.config.model import (
    ConditionConfig,
    ConvStem,
    MambaConfig,
    ModelConfig,
    PatchStem,
    PolicyConfig,
    PredictorConfig,
)
from statevla.config.paths import (
    EARLIER,
    bundled_dir,
    bundled_policies,
    expand_path,
    find_config,
    home_dir,
    portable_text,
    presets,
    results_dir,
)
from statevla.config.robot import fit_to_robot
from statevla.config.training import (
    BcConfig,
    JepaLossConfig,
    LatentLossConfig,
    Phase1Config,
    Phase2Config,
    TargetConfig,
    TrainingConfig,
)
from statevla.config.tree import Config

__all__ = [
    "EARLIER",
    "AugmentationConfig",
    "BcConfig",
    "ConditionConfig",
    "Config",
    "ConvStem",
    "DataConfig",
    "JepaLossConfig",
    "LanguageConfig",
    "LatentLossConfig",
    "MambaConfig",
    "ModelConfig",
    "PatchStem",
    "Phase1Config",
    "Phase2Config",
    "PolicyConfig",
    "PredictorConfig",
    "SourceConfig",
    "TargetConfig",
    "TrainingConfig",
    "all_keys",
    "bundled_dir",
    "bundled_policies",
    "config_from_dict",
    "expand_path",
    "find_config",
    "fit_to_robot",
    "home_dir",
    "load_config",
    "portable_text",
    "presets",
    "results_dir",
    "takes_text",
]
