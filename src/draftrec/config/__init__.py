"""Every knob: its default, bounds, choices and what it does, each said once. Unknown keys are
refused.

The command line is made of these classes (`draftrec.cli.knobs`) and of the settings of
single packages (`items.settings`, `train.settings`, `data.settings` and the like), written in the
same way. What a knob does is said as `--help` prints it.
"""

from draftrec.config.generate import (
    MOST_RECORDS,
    AcceptConfig,
    Auto,
    BatchConfig,
    ControlsConfig,
    Depth,
    Device,
    DraftConfig,
    Dtype,
    GenerateConfig,
    JobConfig,
    ModelConfig,
    RecordsConfig,
    Side,
    Size,
    StructureConfig,
    make_config,
    with_values,
)
from draftrec.config.recommend import (
    EncodeConfig,
    EncoderConfig,
    FirstUsers,
    ListenConfig,
    RecommendConfig,
    RecommendRun,
    RetrieverSettings,
    Wanted,
    make_recommend_config,
)

__all__ = [
    "MOST_RECORDS", "AcceptConfig", "Auto", "BatchConfig", "ControlsConfig", "Depth", "Device",
    "DraftConfig", "Dtype", "EncodeConfig", "EncoderConfig", "FirstUsers", "GenerateConfig",
    "JobConfig", "ListenConfig", "ModelConfig", "RecommendConfig", "RecommendRun",
    "RecordsConfig", "RetrieverSettings", "Side", "Size", "StructureConfig", "Wanted",
    "make_config", "make_recommend_config", "with_values",
]  # fmt: skip
