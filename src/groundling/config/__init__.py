"""Every setting of a run: flags, Python arguments or a config.json come in, a checked `Config` goes out.

Nothing here imports torch.
"""

from groundling.config.config import MINUTES_OR_STEPS, Config, did_you_mean
from groundling.config.presets import DEFAULT_PRESET, PRESETS, Preset
from groundling.config.sampling import Sampling
from groundling.config.settings import (
    GROUPS,
    CorpusSettings,
    MachineSettings,
    ModelSettings,
    TrainingSettings,
    flag,
    setting_fields,
)

__all__ = [
    "DEFAULT_PRESET", "GROUPS", "MINUTES_OR_STEPS", "PRESETS", "Config", "CorpusSettings", "MachineSettings",
    "ModelSettings", "Preset", "Sampling", "TrainingSettings", "did_you_mean", "flag", "setting_fields",
]  # fmt: skip
