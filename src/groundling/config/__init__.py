"""Every setting of a run: flags, Python arguments or a config.json come in, a checked `Config` goes out.

Nothing here imports torch.
"""

from groundling.config import limits
from groundling.config.config import MINUTES_OR_STEPS, Config, did_you_mean
from groundling.config.limits import Limits
from groundling.config.methods import (
    METHODS,
    DistillSettings,
    DpoSettings,
    GrpoSettings,
    RewardSettings,
    SftSettings,
    TuningSettings,
    method_fields,
)
from groundling.config.mix import MIX_OR_CORPUS, MOST_TEXTS, Mix, read_mix
from groundling.config.paths import output_file, slip, user_path
from groundling.config.presets import DEFAULT_PRESET, PRESETS, Preset
from groundling.config.sampling import Sampling
from groundling.config.setting import WITH_ESCAPES, flag
from groundling.config.settings import (
    GROUPS,
    PROCESSES,
    READING,
    CorpusSettings,
    MachineSettings,
    ModelSettings,
    TrainingSettings,
    setting_fields,
)

__all__ = [
    "DEFAULT_PRESET", "GROUPS", "METHODS", "MINUTES_OR_STEPS", "MIX_OR_CORPUS", "MOST_TEXTS", "PRESETS", "PROCESSES",
    "READING", "WITH_ESCAPES", "Config", "CorpusSettings", "DistillSettings", "DpoSettings", "GrpoSettings", "Limits",
    "MachineSettings", "Mix", "ModelSettings", "Preset", "RewardSettings", "Sampling", "SftSettings",
    "TrainingSettings", "TuningSettings", "did_you_mean", "flag", "limits", "method_fields", "output_file", "read_mix",
    "setting_fields", "slip", "user_path",
]  # fmt: skip
