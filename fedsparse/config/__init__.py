"""Configuration: from TOML and the command line to one frozen, checked object.

`load` reads a file, `from_tables` nested dicts; both refuse bad input with a ConfigError of one sentence.
`fedsparse.config.experiment.experiment_of` looks at fields together and at what they name, and makes the experiment.
"""

from fedsparse.config.load import from_tables, load, load_several, reload
from fedsparse.config.schema import Config, Data, Model, Partition, Train, Wire
from fedsparse.config.sentences import ConfigError

__all__ = [
    "Config",
    "ConfigError",
    "Data",
    "Model",
    "Partition",
    "Train",
    "Wire",
    "from_tables",
    "load",
    "load_several",
    "reload",
]
