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
)
from statevla.config.paths import (
    EARLIER,
    bundled_dir,
    bundled_policies,
    expand_path,
    find_config,
    home_dir,
    is_lent,
    portable_text,
    presets,
    results_dir,
)
from statevla.config.phases import PHASES, Phase, PhaseName, phase_of
from statevla.config.robot import fit_to_robot
from statevla.config.training import (
    BcConfig,
    JepaLossConfig,
    Phase1Config,
    Phase2Config,
    TargetConfig,
    TrainingConfig,
)
from statevla.config.tree import Config

__all__ = [
    "EARLIER",
    "PHASES",
    "AugmentationConfig",
    "BcConfig",
    "ConditionConfig",
    "Config",
    "ConvStem",
    "DataConfig",
    "JepaLossConfig",
    "LanguageConfig",
    "MambaConfig",
    "ModelConfig",
    "PatchStem",
    "Phase",
    "Phase1Config",
    "Phase2Config",
    "PhaseName",
    "PolicyConfig",
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
    "is_lent",
    "load_config",
    "phase_of",
    "portable_text",
    "presets",
    "results_dir",
    "takes_text",
]
