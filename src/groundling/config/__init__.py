"""Every setting of a run: flags, Python arguments or a config.json come in, a checked `Config` goes out.

Nothing here imports torch.
"""

from groundling.config import limits
from groundling.config.config import MINUTES_OR_STEPS, Config, did_you_mean
from groundling.config.limits import Limits
from groundling.config.paths import output_file, slip, user_path
from groundling.config.presets import DEFAULT_PRESET, PRESETS, Preset
from groundling.config.sampling import Sampling
from groundling.config.settings import (
    GROUPS,
    READING,
    WITH_ESCAPES,
    CorpusSettings,
    MachineSettings,
    ModelSettings,
    TrainingSettings,
    flag,
    setting_fields,
)

__all__ = [
    "DEFAULT_PRESET", "GROUPS", "MINUTES_OR_STEPS", "PRESETS", "READING", "WITH_ESCAPES", "Config", "CorpusSettings",
    "Limits", "MachineSettings", "ModelSettings", "Preset", "Sampling", "TrainingSettings", "did_you_mean", "flag",
    "limits", "output_file", "setting_fields", "slip", "user_path",
]  # fmt: skip
